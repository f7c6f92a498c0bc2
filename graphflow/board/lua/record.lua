-- record: keep a fact that must not be bought twice; the step's next claim gets it back.
-- KEYS: 1 epoch, 2 run, 3 journal, 4 feed
-- ARGV: 1 token, 2 epoch number, 3 step, 4 fence, 5 tenant/run, 6 submitter, 7 key, 8 value (JSON, no line break)
-- Returns: OK sequence | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local v = redis.call('HMGET', KEYS[2], 's:' .. ARGV[3], 'x:' .. ARGV[3])
if not v[1] then return {'GONE'} end
if v[1] ~= 'RUNNING|' .. ARGV[4] then return {'FENCED', v[1]} end
redis.call('HSET', KEYS[2], 'x:' .. ARGV[3], (v[2] or '') .. ARGV[7] .. '\t' .. ARGV[8] .. '\n')
local data = '{"key":' .. cjson.encode(ARGV[7]) .. ',"value":' .. ARGV[8] .. '}'
local id = tell(KEYS[2], KEYS[4], KEYS[3], ARGV[2], ARGV[5], ARGV[6], 'step.recorded', ARGV[3], clock(), data)
return {'OK', sequence(id)}
