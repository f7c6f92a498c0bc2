-- Put before every script, behind the prelude: how events are told.
-- The event `seq` of a run: to its readers, and, if `journal` is given, to SQL, where its data is. Returns the stream id,
-- or ''. Who calls this writes @seq, together with what else it writes.
local function say(seq, feed, journal, epoch, ref, submitter, kind, step, at, data)
  local id, time = epoch .. '-' .. seq, number(at)
  if journal then
    redis.call('XADD', feed, id, 'type', kind, 'step', step, 'at', time)
  else
    redis.call('XADD', feed, id, 'type', kind, 'step', step, 'at', time, 'data', data)
  end
  if seq % 100 == 0 then redis.call('XTRIM', feed, 'MAXLEN', '~', 10000) end
  if not journal then return '' end
  return redis.call('XADD', journal, epoch .. '-*', 't', kind, 'r', ref, 'u', submitter, 's', step, 'q', seq,
    'a', time, 'd', data)
end
-- The next event of a run.
local function tell(run, ...) return say(redis.call('HINCRBY', run, '@seq', 1), ...) end
