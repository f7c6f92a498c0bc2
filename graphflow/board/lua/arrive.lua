-- arrive: record the outcome of a claimed step, at most once. Its consequences go to the run's inbox.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 inbox, 5 inboxes, 6 journal, 7 feed, 8 parked, 9 nudge,
--       with a concurrency key also, 10 timers, 11 holders, 12 waiters
-- ARGV: 1 token, 2 epoch number, 3 step, 4 fence, 5 tenant/run, 6 submitter, 7 state, 8 output, 9 outcome (JSON),
--       10 durability, 11 lock token, 12 lock ms, 13.. fields to read under the lock
-- Returns: PARKED sequence | LOCKED entries values | BUSY | EMPTY | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local step, done, member = ARGV[3], ARGV[7] .. '|' .. ARGV[4], ARGV[5] .. '/' .. ARGV[3]
local was, at = redis.call('HGET', KEYS[2], 's:' .. step), clock()
if not was then return {'GONE'} end
if was == 'RUNNING|' .. ARGV[4] then
  redis.call('ZREM', KEYS[3], member .. '/' .. ARGV[4])
  if KEYS[10] then free(KEYS[11], KEYS[12], KEYS[10], member, at) end
  local id = tell(KEYS[2], KEYS[7], KEYS[6], ARGV[2], ARGV[5], ARGV[6], 'step.' .. string.lower(ARGV[7]), step, at, ARGV[9])
  if ARGV[8] ~= '' then redis.call('HSET', KEYS[2], 'o:' .. step, ARGV[8]) end
  if ARGV[10] == 'step' then
    redis.call('HSET', KEYS[2], 's:' .. step, 'BLOCKED|JOURNAL|' .. number(at) .. '|' .. done)
    return {'PARKED', park(KEYS[8], KEYS[9], id, member)}
  end
  redis.call('HSET', KEYS[2], 's:' .. step, done)
  redis.call('RPUSH', KEYS[4], cjson.encode({t = 'arrived', step = step}))
  redis.call('ZADD', KEYS[5], at, ARGV[5])
elseif string.sub(was, -#done) == done and string.sub(was, 1, 8) == 'BLOCKED|' then
  return {'PARKED', redis.call('ZSCORE', KEYS[8], member) or '0'}
elseif was ~= done then
  return {'FENCED', was}
end
return lock(KEYS[2], KEYS[4], ARGV[11], tonumber(ARGV[12]), at, ARGV, 13)
