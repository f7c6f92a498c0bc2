-- ask: steps of one run wait for their concurrency key, each for its turn; who may run at once is granted at once.
-- KEYS: 1 epoch, 2 run, 3 timers, 4 held, 5 holders, 6 waiters
-- ARGV: 1 token, 2 tenant/run, then of each step: its name, the state it must have, the state it gets (BLOCKED|LIMIT|...), the
--       timer that brought it (ON) or '', the limit
-- Returns: OK number of steps that wait or may run | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local at, asked, closed = clock(), 0, tonumber(redis.call('ZSCORE', KEYS[6], '@') or 0)
local last = math.max(0, tonumber(redis.call('ZRANGE', KEYS[6], -1, -1, 'WITHSCORES')[2] or 0))
for i = 3, #ARGV, 5 do
  local field, member = 's:' .. ARGV[i], ARGV[2] .. '/' .. ARGV[i]
  local was = redis.call('HGET', KEYS[2], field)
  if was == ARGV[i + 1] or was == ARGV[i + 2] then
    asked = asked + 1
    redis.call('HSET', KEYS[2], field, ARGV[i + 2])
    if ARGV[i + 3] ~= '' then redis.call('ZREM', KEYS[3], member .. '/' .. ARGV[i + 3]) end
    redis.call('ZREM', KEYS[4], member)
    if at < -closed then redis.call('ZADD', KEYS[3], -closed, member .. '/ASK') end -- somebody must open it then
    if redis.call('ZSCORE', KEYS[5], member) then
      redis.call('ZADD', KEYS[3], at, member .. '/LIMIT')
    else
      redis.call('ZADD', KEYS[6], 'NX', last + asked, member .. '/' .. ARGV[i + 4])
    end
  end
end
admit(KEYS[5], KEYS[6], KEYS[3], at)
return {'OK', asked}
