-- release: what waited for the journal goes on: parked outcomes to the inbox, a run's end to its readers.
-- KEYS: 1 epoch, 2 run, 3 inbox, 4 inboxes, 5 parked, 6 runs, 7 done, 8 feed
-- ARGV: 1 token, 2 epoch number, 3 tenant/run, 4 grace ms, 5 sequence up to which SQL has everything, 6.. steps (@ = the run)
-- Returns: OK number of outcomes, run's end (state or '') | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local at, moved, ended = clock(), 0, ''
for i = 6, #ARGV do
  local step, member = ARGV[i], ARGV[3] .. '/' .. ARGV[i]
  local score = redis.call('ZSCORE', KEYS[5], member)
  if score and tonumber(score) <= tonumber(ARGV[5]) then
    redis.call('ZREM', KEYS[5], member)
    local was = redis.call('HGET', KEYS[2], step == '@' and '@state' or 's:' .. step)
    local done = was and string.match(was, '^BLOCKED|JOURNAL|%d+|(.*)$')
    if done then
      redis.call('HSET', KEYS[2], 's:' .. step, done)
      redis.call('RPUSH', KEYS[3], cjson.encode({t = 'arrived', step = step}))
      redis.call('ZADD', KEYS[4], at, ARGV[3])
      moved = moved + 1
    elseif step == '@' and was then
      redis.call('ZREM', KEYS[6], ARGV[3])
      redis.call('ZADD', KEYS[7], at + ARGV[4], ARGV[3])
      local v = redis.call('HMGET', KEYS[2], '@output', '@error')
      local data = '{"state":"' .. was .. '","output":' .. (v[1] or 'null') .. ',"error":' .. (v[2] or 'null') .. '}'
      tell(KEYS[2], KEYS[8], nil, ARGV[2], '', '', 'run.finished', '', at, data)
      ended = was
    end
  end
end
return {'OK', number(moved), ended}
