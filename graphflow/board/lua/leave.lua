-- leave: steps need their concurrency key no more: they ended, or their run is paused. What they leave is granted to others.
-- That a step leaves is a timer: without it the step has left already, or has asked for the key again.
-- KEYS: 1 epoch, 2 timers, 3 holders, 4 waiters
-- ARGV: 1 token, 2 tenant/run, then of each step: its name, the limit
-- Returns: OK | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
for i = 3, #ARGV, 2 do
  local member = ARGV[2] .. '/' .. ARGV[i]
  if redis.call('ZREM', KEYS[2], member .. '/LEAVE') == 1 then
    redis.call('ZREM', KEYS[3], member)
    redis.call('ZREM', KEYS[4], member .. '/' .. ARGV[i + 1])
    redis.call('ZREM', KEYS[2], member .. '/LIMIT')
  end
end
admit(KEYS[3], KEYS[4], KEYS[2], clock())
return {'OK'}
