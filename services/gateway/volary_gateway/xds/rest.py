"""V2 over HTTP at the edge: what it passes by, and how Envoy itself refuses it."""

# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (xds-protos ships no type stubs)

from __future__ import annotations

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.extensions.common.matching.v3 import extension_matcher_pb2
from envoy.extensions.filters.common.matcher.action.v3 import skip_action_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf.message import Message
from xds.type.matcher.v3 import matcher_pb2

from volary_gateway.xds.edge import REST
from volary_gateway.xds.packing import pack

HttpFilter = http_connection_manager_pb2.HttpFilter
LocalReplies = http_connection_manager_pb2.LocalReplyConfig
Matcher = matcher_pb2.Matcher
FORBIDDEN, UNAUTHENTICATED = 403, 401


def besides_rest(name: str, config: Message) -> HttpFilter:
    """Return a filter that V2 over HTTP does not go through."""
    path = http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=":path")
    skip = Matcher.MatcherList.FieldMatcher()
    skip.predicate.single_predicate.input.name = "path"
    skip.predicate.single_predicate.input.typed_config.CopyFrom(pack(path))
    skip.predicate.single_predicate.value_match.prefix = REST
    skip.on_match.action.name = "skip"
    skip.on_match.action.typed_config.CopyFrom(pack(skip_action_pb2.SkipFilter()))
    matched = extension_matcher_pb2.ExtensionWithMatcher(
        extension_config=extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(config)),
        xds_matcher=Matcher(matcher_list=Matcher.MatcherList(matchers=[skip])),
    )
    return HttpFilter(name=name, typed_config=pack(matched))


def local_replies() -> LocalReplies:
    """Write what Envoy itself refuses as the protocol has errors; a revoked key is a 401."""
    revoked, other = LocalReplies().mappers.add(), LocalReplies().mappers.add()
    revoked.filter.and_filter.filters.extend([_is_rest(), _has_status(FORBIDDEN)])
    revoked.status_code.value = UNAUTHENTICATED
    _say(revoked, "the credential is revoked", "CREDENTIAL_REVOKED")
    other.filter.CopyFrom(_is_rest())
    _say(other, "%LOCAL_REPLY_BODY%", "EDGE_REFUSED")
    return LocalReplies(mappers=[revoked, other])


def _say(mapper: http_connection_manager_pb2.ResponseMapper, text: str, reason: str) -> None:
    mapper.body_format_override.json_format.update({"error": text, "reason": reason})


def _is_rest() -> accesslog_pb2.AccessLogFilter:
    found = accesslog_pb2.AccessLogFilter()
    found.header_filter.header.name = ":path"
    found.header_filter.header.string_match.prefix = REST
    return found


def _has_status(status: int) -> accesslog_pb2.AccessLogFilter:
    found = accesslog_pb2.AccessLogFilter()
    found.status_code_filter.comparison.value.default_value = status
    found.status_code_filter.comparison.value.runtime_key = "volary.rest.revoked"
    return found
