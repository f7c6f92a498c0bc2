-- park: take a step out of its worker's hands and let it wait, without a slot: for a retry, a hook's time, or a signal.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 timers, 5 inbox, 6 inboxes, 7 journal, 8 feed, 9 nudge,
--       with a concurrency key also, 10 holders, 11 waiters
-- ARGV: 1 token, 2 epoch number, 3 step, 4 fence, 5 tenant/run, 6 submitter, 7 on (RETRY|HOOK|SIGNAL), 8 delay ms or '',
--       9 attempt from now on, 10 event type, 11 event data (JSON), 12 detail, 13 signal to look back for or ''
-- Returns: OK | SIGNALLED (it is in the inbox already) | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local step, member = ARGV[3], ARGV[5] .. '/' .. ARGV[3]
local was, at = redis.call('HGET', KEYS[2], 's:' .. step), clock()
if not was then return {'GONE'} end
if was ~= 'RUNNING|' .. ARGV[4] then
  if string.find(was, 'BLOCKED|' .. ARGV[7] .. '|', 1, true) == 1 and string.sub(was, -#ARGV[4]) == ARGV[4] then return {'OK'} end
  return {'FENCED', was}
end
redis.call('ZREM', KEYS[3], member .. '/' .. ARGV[4])
if KEYS[10] then free(KEYS[10], KEYS[11], KEYS[4], member, at) end
redis.call('HSET', KEYS[2], 's:' .. step, 'BLOCKED|' .. ARGV[7] .. '|' .. number(at) .. '|' .. ARGV[12] .. '|' .. ARGV[4],
  'a:' .. step, ARGV[9])
redis.call('HDEL', KEYS[2], 'd:' .. step)
if ARGV[8] ~= '' then redis.call('ZADD', KEYS[4], at + ARGV[8], member .. '/' .. ARGV[7]) end
tell(KEYS[2], KEYS[8], KEYS[7], ARGV[2], ARGV[5], ARGV[6], ARGV[10], step, at, ARGV[11])
if ARGV[7] == 'SIGNAL' then wake(KEYS[9]) end -- people read the question in SQL
local early = ARGV[13] ~= '' and redis.call('HGET', KEYS[2], 'g:' .. ARGV[13])
if not early then return {'OK'} end
for line in string.gmatch(early, '[^\n]+') do redis.call('RPUSH', KEYS[5], line) end
redis.call('ZADD', KEYS[6], at, ARGV[5])
return {'SIGNALLED'}
