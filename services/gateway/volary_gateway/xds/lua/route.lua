-- After the first message is read: the model or operation that it names becomes the scope.
local EXTRACTED = "envoy.filters.http.grpc_field_extraction"

local REFUSALS = {
  model = {code = 5, reason = "MODEL_NOT_FOUND", text = "the model does not exist"},
  version = {code = 5, reason = "VERSION_NOT_FOUND", text = "the version is not loaded"},
  key = {code = 3, reason = "STICKY_KEY_MISSING",
    text = "the call lacks the header that the split is keyed by"},
}

local function first(value)
  if type(value) == "table" then
    value = value[1]
  end
  if value == nil then
    return ""
  end
  return tostring(value)
end

local function to_service(handle, headers, name)
  if string.match(name, "^projects/[^/]+/operations/?$") then
    refuse(handle, 3, "say whose operations: projects/{project}/operations/{service}",
      "OPERATION_SERVICE_MISSING", {field = "name"})
    return
  end
  local service = string.match(name, "^projects/[^/]+/operations/([a-z]+)[./]?")
  if service == nil or SERVICES[service] == nil then
    refuse(handle, 5, "the operation does not exist", "OPERATION_NOT_FOUND",
      {operation = printable(name)})
    return
  end
  headers:replace("volary-service", service)
  headers:replace("volary-scope", "-")
  handle:clearRouteCache()
end

local function to_model(handle, headers, method, fields)
  local model = first(fields[method.field])
  if model == "" then
    refuse(handle, 3, "the call names no model", "MODEL_NAME_EMPTY", {field = method.field})
    return
  end
  local project = headers:get("volary-project")
  headers:replace("volary-model", printable(model))
  local scope = project .. "/" .. printable(model)
  local pinned = first(fields[method.version])
  local is_pinned = pinned ~= "" and pinned ~= "0"
  if is_pinned then
    headers:replace("volary-pinned", printable(pinned))
  end
  if is_pinned or method.kind == "info" then
    scope = scope .. ASIDE
  end
  headers:replace("volary-scope", scope)
  handle:clearRouteCache()
  local route = handle:metadata()
  local refusal = REFUSALS[route:get("refuse") or (route:get("known") and "" or "model")]
  if refusal ~= nil then
    refuse(handle, refusal.code, refusal.text, refusal.reason, {model = printable(model)})
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local method = METHODS[headers:get(":path") or ""]
  if method == nil or method.kind == "default" then
    return
  end
  local fields = handle:streamInfo():dynamicMetadata():get(EXTRACTED) or {}
  if method.kind == "operation" then
    to_service(handle, headers, first(fields["name"]))
  else
    to_model(handle, headers, method, fields)
  end
end
