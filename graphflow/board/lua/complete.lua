-- complete: record a success, and at once what follows from it, if nothing contends; else it is left to who has the lock.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 inbox, 5 inboxes, 6 journal, 7 feed, 8.. list, rung, list, rung ...
-- ARGV: 1 token, 2 epoch number, 3 step, 4 fence, 5 tenant/run, 6 submitter, 7 output, 8 outcome (JSON), 9 lock token,
--       10 lock ms, 11 number of followers, followers (step, edges that end at it, steps that it reads, and for one edge:
--       list number, ring, bytes; else '', '', ''), then fields to read under the lock
-- Returns: OK | LOCKED entries values | BUSY | EMPTY | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local run, step, at, first = KEYS[2], ARGV[3], clock(), 12 + 6 * ARGV[11]
local done, names = 'SUCCEEDED|' .. ARGV[4], {'s:' .. step, '@state', '@stop', '@lock', '@open', '@seq'}
for i = 12, first - 1, 6 do
  for _, kind in ipairs({'s:', 'n:', 'j:', 'k:'}) do names[#names + 1] = kind .. ARGV[i] end
end
local v = redis.call('HMGET', run, unpack(names))
if not v[1] then return {'GONE'} end
if v[1] == done then return lock(run, KEYS[4], ARGV[9], tonumber(ARGV[10]), at, ARGV, first) end
if v[1] ~= 'RUNNING|' .. ARGV[4] then return {'FENCED', v[1]} end
redis.call('ZREM', KEYS[3], ARGV[5] .. '/' .. step .. '/' .. ARGV[4])
local seq = (v[6] or 0) + 1
say(seq, KEYS[7], KEYS[6], ARGV[2], ARGV[5], ARGV[6], 'step.succeeded', step, at, ARGV[8])
local own = ARGV[7] == '' and {'s:' .. step, done} or {'s:' .. step, done, 'o:' .. step, ARGV[7]}
local writes, rung = {'c:' .. step, 'x', '@open', number(v[5] - 1), unpack(own)}, {}
local free = v[2] == 'RUNNING' and not v[3] and not v[4] and tonumber(v[5]) > 1 and redis.call('LLEN', KEYS[4]) == 0
for i = 12, first - 1, 6 do
  local name, k = ARGV[i], 7 + (i - 12) / 6 * 4
  local resolved = (v[k + 2] or 0) + 1
  local ready = ARGV[i + 5] ~= ''
  free = free and not v[k] and not v[k + 1] and (ready or resolved < tonumber(ARGV[i + 1])) -- who fires a join, decides
  local more = ready and {'n:' .. name, '1', 's:' .. name, 'READY|' .. ARGV[i + 4], 'r:' .. name, ARGV[i + 2]}
    or {'j:' .. name, number(resolved), 'k:' .. name, number((v[k + 3] or 0) + 1)}
  for w = 1, ready and ARGV[i + 2] == '' and 4 or #more do writes[#writes + 1] = more[w] end
  if ready then rung[#rung + 1] = i end
end
redis.call('HSET', run, '@seq', free and seq + #rung or seq, unpack(free and writes or own))
if not free then
  redis.call('RPUSH', KEYS[4], cjson.encode({t = 'arrived', step = step}))
  redis.call('ZADD', KEYS[5], at, ARGV[5])
  return lock(run, KEYS[4], ARGV[9], tonumber(ARGV[10]), at, ARGV, first)
end
for nth, i in ipairs(rung) do
  redis.call('LPUSH', KEYS[6 + 2 * ARGV[i + 3]], ARGV[i + 5])
  redis.call('ZADD', KEYS[7 + 2 * ARGV[i + 3]], at, ARGV[5] .. '/' .. ARGV[i] .. '/' .. ARGV[i + 4])
  say(seq + nth, KEYS[7], nil, ARGV[2], '', '', 'step.ready', ARGV[i], at, '{}')
end
return {'OK'}
