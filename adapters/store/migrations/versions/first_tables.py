"""The event log and the interactions folded from it."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    # Append-only: rows are inserted, never updated. Everything else can be made again from here.
    """
    CREATE TABLE events (
        event_id text PRIMARY KEY,
        at timestamptz NOT NULL,
        name text NOT NULL,
        call_id text,
        agent_id text,
        queue_id text,
        facts jsonb NOT NULL
    )
    """,
    # Events arrive almost in order of time: a block-range index answers time ranges for a few
    # kilobytes and next to no cost per insert.
    "CREATE INDEX events_at ON events USING brin (at) WITH (pages_per_range = 32, autosummarize = on)",
    "CREATE INDEX events_call ON events (call_id) WHERE call_id IS NOT NULL",
    """
    CREATE TABLE interactions (
        call_id text PRIMARY KEY,
        started_at timestamptz NOT NULL,
        answered_at timestamptz,
        ended_at timestamptz,
        caller text NOT NULL,
        caller_name text NOT NULL,
        dialled text NOT NULL,
        trunk text,
        from_agent text,
        queue_id text,
        agent_id text,
        outcome text,
        cause text,
        status integer,
        ended_by text,
        offers integer NOT NULL,
        duration_s double precision,
        wait_s double precision NOT NULL,
        talk_s double precision NOT NULL,
        hold_s double precision NOT NULL,
        recording_path text,
        recording_sha256 text,
        recording_ms integer,
        recording_error text,
        statistics jsonb NOT NULL,
        explanation jsonb
    ) WITH (fillfactor = 85)
    """,  # room for the second write of each row, when late facts come
    "CREATE INDEX interactions_started ON interactions (started_at DESC, call_id)",
    "CREATE INDEX interactions_queue ON interactions (queue_id, started_at DESC) WHERE queue_id IS NOT NULL",
    "CREATE INDEX interactions_agent ON interactions (agent_id, started_at DESC) WHERE agent_id IS NOT NULL",
    "CREATE INDEX interactions_caller ON interactions (caller, started_at DESC)",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables with all they hold."""
    op.execute("DROP TABLE interactions")
    op.execute("DROP TABLE events")
