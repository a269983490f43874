"""Who answers whom: the pure routing state machine."""
