"""Views, sets, training sets."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "features_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feature_views",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("view", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("document", JSONB, nullable=False),
        sa.Column("document_hash", sa.Text, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("watermark_us", sa.BigInteger),
        sa.CheckConstraint("version > 0", name="view_versions_count_from_one"),
    )
    op.create_table(
        "feature_sets",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("feature_set", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("document", JSONB, nullable=False),
        sa.Column("document_hash", sa.Text, nullable=False),
        sa.Column("schema_hash", sa.Text, nullable=False),
        # which version of each view the set was declared over: {"view": 1}
        sa.Column("view_versions", JSONB, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("version > 0", name="set_versions_count_from_one"),
    )
    op.create_table(
        "training_sets",
        sa.Column("project", sa.Text, primary_key=True),
        sa.Column("training_set", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        # a serialized TrainingSet: it never changes and grows with the contract
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("training_sets_by_age", "training_sets", ["project", sa.text("position DESC")])


def downgrade() -> None:
    for table in ("training_sets", "feature_sets", "feature_views"):
        op.drop_table(table)
