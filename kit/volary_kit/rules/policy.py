"""Who may call: deny unless a role of the caller is in the row of the RPC."""

from __future__ import annotations

from volary_kit.calls import Call
from volary_kit.errors import PermissionDenied
from volary_kit.rules.chain import Rule


class Authorization(Rule):
    """Refuse a caller none of whose roles is in the policy row."""

    def before(self, call: Call) -> None:
        if call.policy.is_anonymous or call.policy.allow & call.principal.roles:
            return
        raise PermissionDenied(
            "ROLE_MISSING",
            f"{call.method} needs one of the roles {', '.join(sorted(call.policy.allow))}",
            {"method": call.method, "allowed_roles": ",".join(sorted(call.policy.allow))},
        )
