-- post: put an entry in a run's inbox (none = only look), and take the run's lock if it is free.
-- KEYS: 1 epoch, 2 run, 3 inbox, 4 inboxes
-- ARGV: 1 token, 2 tenant/run, 3 entry (JSON) or '', 4 lock token, 5 lock ms, 6.. fields to read under the lock
-- Returns: LOCKED entries values | BUSY | EMPTY | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
if redis.call('HEXISTS', KEYS[2], '@state') == 0 then
  redis.call('ZREM', KEYS[4], ARGV[2])
  return {'GONE'}
end
local at = clock()
if ARGV[3] ~= '' then
  redis.call('RPUSH', KEYS[3], ARGV[3])
  redis.call('ZADD', KEYS[4], at, ARGV[2])
end
local answer = lock(KEYS[2], KEYS[3], ARGV[4], tonumber(ARGV[5]), at, ARGV, 6)
if answer[1] == 'EMPTY' then redis.call('ZREM', KEYS[4], ARGV[2]) end
return answer
