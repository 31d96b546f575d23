"""Tables of the kit in every service's schema: remembered replies, outbox, operations."""

import sqlalchemy as sa
from alembic import op

revision = "kit_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "kit_replies",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("request_hash", sa.LargeBinary, nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("replied_us", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "kit_outbox",
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "kit_operations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("traceparent", sa.Text, nullable=False),
        sa.Column("request_type", sa.Text, nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("metadata_type", sa.Text, nullable=False),
        sa.Column("metadata", sa.LargeBinary, nullable=False),
        sa.Column("response_type", sa.Text),
        sa.Column("response", sa.LargeBinary),
        sa.Column("error", sa.LargeBinary),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("started", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("update_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint(
            "state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')",
            name="kit_operations_state",
        ),
        sa.CheckConstraint(
            "(state = 'SUCCEEDED') = (response IS NOT NULL)", name="kit_operations_response"
        ),
        sa.CheckConstraint(
            "(state IN ('FAILED', 'CANCELLED')) = (error IS NOT NULL)", name="kit_operations_error"
        ),
    )
    op.create_index("kit_operations_by_project", "kit_operations", ["project", "create_us", "id"])
    op.create_index(
        "kit_operations_unstarted",
        "kit_operations",
        ["create_us"],
        postgresql_where=sa.text("NOT started"),
    )


def downgrade() -> None:
    op.drop_table("kit_operations")
    op.drop_table("kit_outbox")
    op.drop_table("kit_replies")
