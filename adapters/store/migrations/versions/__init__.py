"""One module per schema version, in order of `down_revision`."""
