-- Put before the scripts that deal with concurrency keys. Of one key: `holders` has who may run, by when that was granted;
-- `waiters` has who waits, as member/limit, by turn. An '@' at its head keeps all waiting until the time that its turn
-- names, negated: on a new board those who held the key before come first.
-- A grant is a timer that is due: whoever comes by rings the step, in the end the sweeper.
local function admit(holders, waiters, timers, at)
  local first = redis.call('ZRANGE', waiters, 0, 0, 'WITHSCORES')
  if first[1] == '@' and at >= -first[2] then redis.call('ZREM', waiters, '@') end
  for _ = 1, 100 do
    local head = redis.call('ZRANGE', waiters, 0, 0)[1]
    local member, limit = string.match(head or '', '^(.*)/(%d+)$')
    if not member or redis.call('ZCARD', holders) >= tonumber(limit) then return end
    redis.call('ZREM', waiters, head)
    redis.call('ZADD', holders, at, member)
    redis.call('ZADD', timers, at, member .. '/LIMIT')
  end
end
-- Somebody needs the key no more.
local function free(holders, waiters, timers, member, at)
  redis.call('ZREM', holders, member)
  admit(holders, waiters, timers, at)
end
