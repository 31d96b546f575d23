-- Before the message is read: which methods exist, for how long they may run, and that the
-- message can be read at all. After the reply: an error that Envoy itself made gets ErrorInfo.
local UNITS = {H = 3600000, M = 60000, S = 1000, m = 1, u = 0.001, n = 0.000001}
local NAMES = {
  [4] = "DEADLINE_EXCEEDED", [3] = "MESSAGE_INVALID", [8] = "MESSAGE_TOO_LARGE", [12] = "METHOD_UNKNOWN",
  [14] = "UPSTREAM_UNAVAILABLE", [16] = "CREDENTIAL_INVALID",
}

local function deadline(headers, method)
  if method.default == 0 then
    return
  end
  local amount, unit = string.match(headers:get("grpc-timeout") or "", "^(%d+)([HMSmun])$")
  local asked = amount and tonumber(amount) * UNITS[unit] or method.default
  if amount == nil or asked > method.max then
    headers:replace("grpc-timeout", string.format("%dm", math.min(asked, method.max)))
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path") or ""
  if REST ~= nil and string.sub(path, 1, #REST) == REST then
    -- over HTTP: the call that it becomes comes back here, and is limited and split then
    headers:remove("volary-principal")
    headers:replace("volary-scope", "-")
    headers:replace("volary-service", "rest")
    handle:clearRouteCache()
    return
  end
  local method = METHODS[path]
  if method == nil then
    refuse(handle, 12, "the method is not served here", "METHOD_UNKNOWN",
      {method = printable(path)})
    return
  end
  deadline(headers, method)
  if headers:get("volary-project") == nil then
    headers:replace("volary-project", "default")
  end
  if method.kind == "default" then
    headers:replace("volary-scope", "-")
    headers:replace("volary-service", method.service)
    handle:clearRouteCache()
    return
  end
  local encoding = headers:get("grpc-encoding")
  if encoding ~= nil and encoding ~= "identity" then
    refuse(handle, 12, "a compressed message cannot be routed: send it as it is",
      "COMPRESSION_UNSUPPORTED", {encoding = printable(encoding)},
      {["grpc-accept-encoding"] = "identity"})
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local code = tonumber(headers:get("grpc-status") or "0")
  if code == nil or code == 0 or headers:get("grpc-status-details-bin") ~= nil then
    return
  end
  local text = printable(headers:get("grpc-message") or "")
  if code == 9 and string.find(text, "buffer limits", 1, true) then
    code = 8
    headers:replace("grpc-status", "8")
  end
  if code == 8 and string.find(text, "rate_limited", 1, true) then
    text = "too many calls: come back later"
    headers:replace("grpc-message", text)
    headers:replace("grpc-status-details-bin", details(handle, code, text, "RATE_LIMITED", {}))
    return
  end
  if code == 7 and string.find(text, "RBAC", 1, true) then
    code, text = 16, "the credential is revoked"
    headers:replace("grpc-status", "16")
    headers:replace("grpc-message", text)
    headers:replace("grpc-status-details-bin",
      details(handle, code, text, "CREDENTIAL_REVOKED", {}))
    return
  end
  local reason = NAMES[code] or "EDGE_REFUSED"
  headers:replace("grpc-status-details-bin", details(handle, code, text, reason, {}))
end
