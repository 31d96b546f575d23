-- Change entities of one view, and move its watermark, at once or not at all.
-- KEYS: meta, index, then one key an entity.
-- ARGV: watermark ('' to leave it), '1' to create the meta, entities that may go (their last
-- instant below this; '' for none), channel, prefix, then four an entity: SHA-1 of the bytes that
-- were read ('' for none), new bytes ('' to delete), last instant, member.
-- Returns 1, or 0 when another writer was faster and nothing was changed.
local first = 6
for i = 3, #KEYS do
  local found = redis.call('GET', KEYS[i])
  local expected = ARGV[first + (i - 3) * 4]
  if (found and redis.sha1hex(found) or '') ~= expected then
    return 0
  end
end
for i = 3, #KEYS do
  local at = first + (i - 3) * 4
  if ARGV[at + 1] == '' then
    redis.call('DEL', KEYS[i])
    redis.call('ZREM', KEYS[2], ARGV[at + 3])
  else
    redis.call('SET', KEYS[i], ARGV[at + 1])
    redis.call('ZADD', KEYS[2], ARGV[at + 2], ARGV[at + 3])
  end
end
if ARGV[1] ~= '' then
  local before = redis.call('GET', KEYS[1])
  if (before or ARGV[2] == '1') and (not before or tonumber(before) < tonumber(ARGV[1])) then
    redis.call('SET', KEYS[1], ARGV[1])
    redis.call('PUBLISH', ARGV[4], ARGV[5])
  end
end
if ARGV[3] ~= '' then
  -- a bound on the work of one call; what is left goes with the next
  local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[3], 'LIMIT', 0, 200)
  for _, member in ipairs(gone) do
    redis.call('DEL', ARGV[5] .. 'e:' .. member)
    redis.call('ZREM', KEYS[2], member)
  end
end
return 1
