-- ARGV: holder, number of devices, seconds of the lease, ageing and patience, then the devices to choose from.
local holder, count = ARGV[1], tonumber(ARGV[2])
local lease_seconds, ageing_seconds, patience_seconds = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local devices = {}
for i = 6, #ARGV do devices[#devices + 1] = ARGV[i] end

for _, waiter in ipairs(redis.call('HKEYS', KEYS[3])) do
  if now - read(KEYS[3], waiter).seen > patience_seconds then
    redis.call('HDEL', KEYS[3], waiter)
    redis.call('ZREM', KEYS[2], waiter)
  end
end

local function usable(device)
  local lease = read(KEYS[1], device)
  return not (lease and lease.fault)
end

local function free(device)
  local lease = read(KEYS[1], device)
  return not lease or (not lease.fault and lease['until'] <= now)
end

local function held(device)
  local lease = read(KEYS[1], device)
  return lease and not lease.fault and lease.holder == holder and lease['until'] > now
end

local function filter(candidates, condition)
  local found = {}
  for _, device in ipairs(candidates) do
    if condition(device) then found[#found + 1] = device end
  end
  return found
end

local already_held = filter(devices, held)
if #already_held == count then
  return cjson.encode({number = read(KEYS[1], already_held[1]).number, devices = already_held, previous_holders = {}})
end

redis.call('ZADD', KEYS[2], 'NX', now, holder)
redis.call('HSET', KEYS[3], holder, cjson.encode({count = count, seen = now, devices = devices}))

local free_devices, usable_devices = filter(devices, free), filter(devices, usable)
local may_take, queue_position, wanted = #free_devices >= count, 0, {}
for _, device in ipairs(devices) do wanted[device] = true end
for _, waiter in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if waiter == holder then break end
  local request, competes = read(KEYS[3], waiter), false
  for _, device in ipairs(request.devices) do competes = competes or wanted[device] end
  if competes then
    queue_position = queue_position + 1
    local aged = now - tonumber(redis.call('ZSCORE', KEYS[2], waiter)) > ageing_seconds
    -- a waiter that asks for more devices than could ever be free must not block the others
    local could_start = request.count <= #filter(request.devices, free)
    if could_start or (aged and request.count <= #filter(request.devices, usable)) then may_take = false end
  end
end
if not may_take then
  return cjson.encode({queue_position = queue_position, free = #free_devices, usable = #usable_devices})
end

local number = redis.call('INCR', KEYS[4])
local taken, previous_holders = {}, {}
for i = 1, count do
  local device = free_devices[i]
  local before = read(KEYS[1], device)
  if before and before.holder ~= holder then previous_holders[device] = before.holder end
  local lease = {holder = holder, number = number, ['until'] = now + lease_seconds}
  redis.call('HSET', KEYS[1], device, cjson.encode(lease))
  taken[i] = device
end
redis.call('ZREM', KEYS[2], holder)
redis.call('HDEL', KEYS[3], holder)
return cjson.encode({number = number, devices = taken, previous_holders = previous_holders})
