-- ARGV: holder. It leaves the queue and gives back every device that it holds.
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
for _, device in ipairs(redis.call('HKEYS', KEYS[1])) do
  local lease = read(KEYS[1], device)
  if lease.holder == ARGV[1] and not lease.fault then redis.call('HDEL', KEYS[1], device) end
end
