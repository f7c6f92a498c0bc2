-- quota: a call of a model that has limits asks for its place, or says that it has ended.
-- A minute is the last sixty seconds: calls are kept one by one, their tokens are summed up beside them.
-- KEYS: 1 calls that run (zset: id by the end of its lease, ms), 2 calls of the last minute (zset: id by begin, ms),
--       3 their tokens (hash: id, and `sum`), 4 a hold: nobody asks while it is there
-- ARGV: 1 enter | renew | leave, 2 id, 3 lease (ms); enter: 4 concurrent, 5 requests, 6 tokens a minute (0: no limit),
--       7 tokens of this call at most; leave: 4 tokens it took (-1: as it said), 5 hold (ms)
-- Returns: OK | WAIT ms why
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local id, lease = ARGV[2], tonumber(ARGV[3])
local function count(by) redis.call('HINCRBY', KEYS[3], 'sum', by) end
if ARGV[1] == 'renew' then return {'OK', redis.call('ZADD', KEYS[1], 'XX', now + lease, id)} end
if ARGV[1] == 'leave' then
  redis.call('ZREM', KEYS[1], id)
  local said = redis.call('HGET', KEYS[3], id)
  if said and tonumber(ARGV[4]) >= 0 then
    redis.call('HSET', KEYS[3], id, ARGV[4])
    count(ARGV[4] - said)
  end
  if tonumber(ARGV[5]) > 0 then redis.call('SET', KEYS[4], id, 'PX', ARGV[5]) end
  return {'OK'}
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - 60000)) do
  count(-(redis.call('HGET', KEYS[3], old) or 0))
  redis.call('HDEL', KEYS[3], old)
  redis.call('ZREM', KEYS[2], old)
end
if redis.call('ZSCORE', KEYS[1], id) then return {'OK'} end
local hold = redis.call('PTTL', KEYS[4])
if hold > 0 then return {'WAIT', hold, 'its provider asked us to wait'} end
local most, requests, tokens, wanted = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if most > 0 and redis.call('ZCARD', KEYS[1]) >= most then return {'WAIT', 100, most .. ' calls run'} end
local made = redis.call('ZCARD', KEYS[2])
local free = made > 0 and math.max(1, redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] + 60000 - now)
if requests > 0 and made >= requests then return {'WAIT', free, requests .. ' calls a minute'} end
local sum = tonumber(redis.call('HGET', KEYS[3], 'sum') or 0)
if tokens > 0 and made > 0 and sum + wanted > tokens then return {'WAIT', free, tokens .. ' tokens a minute'} end
redis.call('ZADD', KEYS[1], now + lease, id)
redis.call('ZADD', KEYS[2], now, id)
redis.call('HSET', KEYS[3], id, wanted)
count(wanted)
for k = 1, 3 do redis.call('PEXPIRE', KEYS[k], 120000 + lease) end
return {'OK'}
