-- google.rpc.Status with ErrorInfo, written by hand: field = tag, length, bytes.
local function varint(n)
  local out = ""
  while n > 127 do
    out = out .. string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  return out .. string.char(n)
end

local function field(tag, bytes)
  return string.char(tag) .. varint(#bytes) .. bytes
end

local function error_info(reason, metadata)
  local info = field(0x0a, reason) .. field(0x12, "volary.dev")
  for key, value in pairs(metadata) do
    info = info .. field(0x1a, field(0x0a, key) .. field(0x12, value))
  end
  return info
end

local function details(handle, code, text, reason, metadata)
  local any = field(0x0a, "type.googleapis.com/google.rpc.ErrorInfo")
    .. field(0x12, error_info(reason, metadata))
  local status = string.char(0x08, code) .. field(0x12, text) .. field(0x1a, any)
  return (handle:base64Escape(status):gsub("=+$", ""))
end

-- What a caller sent comes back short and printable.
local function printable(text)
  return (string.sub(text, 1, 128):gsub("[^%w%p ]", "?"):gsub("%%", "?"))
end

local function refuse(handle, code, text, reason, metadata, more)
  local headers = {
    [":status"] = "200",
    ["content-type"] = "application/grpc",
    ["grpc-status"] = tostring(code),
    ["grpc-message"] = text,
    ["grpc-status-details-bin"] = details(handle, code, text, reason, metadata),
  }
  for key, value in pairs(more or {}) do
    headers[key] = value
  end
  handle:respond(headers, "")
end
