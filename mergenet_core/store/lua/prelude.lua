-- Put before every script. KEYS[1]: leases by device; KEYS[2]: queue; KEYS[3]: requests of those in the queue;
-- KEYS[4]: the newest lease number.
-- A lease is {holder, number, until, fault}; a device with a fault is quarantined, whatever `until` is.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local function read(key, field)
  local text = redis.call('HGET', key, field)
  return text and cjson.decode(text)
end
