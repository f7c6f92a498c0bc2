-- Put before every script. Small words that all scripts share; creates nothing.
local REBUILD = {'REBUILD'}
local function number(n) return string.format('%.0f', n) end
local now
local function clock() -- it stands still while a script runs
  if not now then
    local t = redis.call('TIME')
    now = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return now
end
local function sequence(id) return string.match(id, '%-(%d+)$') end
-- Somebody waits for SQL: the journaler, who gathers meanwhile, need not gather more.
local function wake(nudge)
  if redis.call('LLEN', nudge) == 0 then redis.call('LPUSH', nudge, '1') end
end
-- What an event says waits until SQL has the event. Returns the stream sequence.
local function park(parked, nudge, id, member)
  redis.call('ZADD', parked, sequence(id), member)
  wake(nudge)
  return sequence(id)
end
-- Take the run's lock if it is free, and read what its inbox holds, and the fields named by `args` from `first` on. The lock is a lease: its holder may die.
local function lock(run, inbox, token, ms, at, args, first)
  local held = redis.call('HGET', run, '@lock')
  if held then
    local owner, expiry = string.match(held, '^(.*)|(%d+)$')
    if owner ~= token and tonumber(expiry) > at then return {'BUSY'} end
  end
  local entries = redis.call('LRANGE', inbox, 0, 99)
  if #entries == 0 then return {'EMPTY'} end
  redis.call('HSET', run, '@lock', token .. '|' .. number(at + ms))
  local values = {}
  for i = first, #args, 200 do
    for _, v in ipairs(redis.call('HMGET', run, unpack(args, i, math.min(i + 199, #args)))) do
      values[#values + 1] = v or ''
    end
  end
  return {'LOCKED', entries, values, number(at)}
end
