-- start: put an accepted run on the board, once, and not after the time at which the sweeper may do it instead.
-- KEYS: 1 epoch, 2 run, 3 runs, 4 plan, 5 journal, 6 feed, 7 inbox, 8 inboxes
-- ARGV: 1 token, 2 epoch number, 3 not after (ms) or '', 4 tenant/run, 5 submitter, 6 plan (JSON; '' = the
--       board should have it), 7 meta (JSON), 8 input (JSON), 9 number of steps, 10 control version, 11 lock token, 12 lock ms,
--       13.. fields to read under the lock
-- Returns: LOCKED entries values | EXISTS | LATE | NOPLAN (say it again with the plan) | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local at = clock()
if redis.call('HEXISTS', KEYS[2], '@state') == 1 then return {'EXISTS'} end
if ARGV[3] ~= '' and at > tonumber(ARGV[3]) then return {'LATE'} end
if ARGV[6] == '' and redis.call('EXISTS', KEYS[4]) == 0 then return {'NOPLAN'} end
redis.call('HSET', KEYS[2], '@state', 'RUNNING', '@cv', ARGV[10], '@open', ARGV[9], '@meta', ARGV[7], '@input', ARGV[8])
redis.call('ZADD', KEYS[3], at, ARGV[4])
if ARGV[6] ~= '' then redis.call('SET', KEYS[4], ARGV[6]) end
tell(KEYS[2], KEYS[6], KEYS[5], ARGV[2], ARGV[4], ARGV[5], 'run.started', '', at, '{}')
redis.call('RPUSH', KEYS[7], cjson.encode({t = 'start'}))
redis.call('ZADD', KEYS[8], at, ARGV[4])
return lock(KEYS[2], KEYS[7], ARGV[11], tonumber(ARGV[12]), at, ARGV, 13)
