-- adopt: put an accepted run on the board that has outcomes already, once: the hash that was made for it becomes the run.
-- KEYS: 1 epoch, 2 run, 3 made, 4 runs, 5 plan, 6 journal, 7 feed, 8 inbox, 9 inboxes, 10 held, 11 timers
-- ARGV: 1 token, 2 epoch number, 3 not after (ms) or '', 4 tenant/run, 5 submitter, 6 plan (JSON), 7 data of run.started,
--       groups: inbox (entry), held (step; due at once), timers (member, due ms), events (type, step, data)
-- Returns: OK | EXISTS | LATE | LOST (what was made is gone: make it again) | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local run, ref, at, i = KEYS[2], ARGV[4], clock(), 7
local function take() i = i + 1; return ARGV[i] end
if redis.call('HEXISTS', run, '@state') == 1 then return {'EXISTS'} end
if ARGV[3] ~= '' and at > tonumber(ARGV[3]) then return {'LATE'} end
if redis.call('EXISTS', KEYS[3]) == 0 then return {'LOST'} end
redis.call('RENAME', KEYS[3], run)
redis.call('PERSIST', run)
redis.call('ZADD', KEYS[4], at, ref)
redis.call('SET', KEYS[5], ARGV[6])
tell(run, KEYS[7], KEYS[6], ARGV[2], ref, ARGV[5], 'run.started', '', at, ARGV[7])
for _ = 1, take() do
  redis.call('RPUSH', KEYS[8], take())
  redis.call('ZADD', KEYS[9], at, ref)
end
for _ = 1, take() do redis.call('ZADD', KEYS[10], at, ref .. '/' .. take()) end
for _ = 1, take() do
  local member, due = take(), take()
  redis.call('ZADD', KEYS[11], due, ref .. '/' .. member)
end
for _ = 1, take() do
  local kind, step, data = take(), take(), take()
  tell(run, KEYS[7], KEYS[6], ARGV[2], ref, ARGV[5], kind, step, at, data)
end
return {'OK'}
