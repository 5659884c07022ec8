-- ARGV: number of the lease; renew, release or quarantine; seconds or reason; then the devices of the lease.
-- Returns 1, or 0 where nothing was changed because the lease no longer holds all of them.
local number, action, value = tonumber(ARGV[1]), ARGV[2], ARGV[3]

for i = 4, #ARGV do
  local lease = read(KEYS[1], ARGV[i])
  if not lease or lease.fault or lease.number ~= number then return 0 end
  -- a device may be quarantined after its lease has run out, as long as it was not lent again
  if lease['until'] <= now and action ~= 'quarantine' then return 0 end
end

for i = 4, #ARGV do
  if action == 'release' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    local lease = read(KEYS[1], ARGV[i])
    if action == 'renew' then lease['until'] = now + tonumber(value) else lease.fault = value end
    redis.call('HSET', KEYS[1], ARGV[i], cjson.encode(lease))
  end
end
return 1
