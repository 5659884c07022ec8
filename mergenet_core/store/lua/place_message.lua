-- KEYS: the queue's list, the message's hash. ARGV: the message's id, and the text by which messages are sorted.
-- Moves a message that was appended to the queue to where it belongs, unless a worker has taken it already.
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then return end
redis.call('HSET', KEYS[2], 'order', ARGV[2])
local waiting = redis.call('LRANGE', KEYS[1], 0, -1)
local prefix = string.sub(KEYS[2], 1, #KEYS[2] - #ARGV[1])
for i = #waiting, 1, -1 do
  -- a message without an order is none of ours, or was appended just now: its id begins with the job's, too
  local order = redis.call('HGET', prefix .. waiting[i], 'order') or waiting[i]
  if order <= ARGV[2] then
    redis.call('LINSERT', KEYS[1], 'AFTER', waiting[i], ARGV[1])
    return
  end
end
redis.call('LPUSH', KEYS[1], ARGV[1])
