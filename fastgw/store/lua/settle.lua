-- Settle one batch. Amounts in the unit of the account (tokens, requests, nano-USD), times in epoch
-- seconds, all integers.
--
-- KEYS[i]   the account, a hash: used = what was debited; s:<writer> = last sequence settled there;
--           h:<writer> = sequence:amount:until, what a writer holds there
-- ARGV[1]   the writer
-- ARGV[2]   the batch's sequence: a line is applied if it is above the one kept for the writer
-- ARGV[3]   seconds after which a hold lapses
-- ARGV[4]   one part in so many of what is free may be held ahead of need
-- then for each key four: amount, expiry, the last sequence that we acknowledged to the writer on
--           this account, and what `used` was then: if the account forgot, that is put back first
-- then for each claim six: index of its key, limit, floor, need, spare, least (see fastgw/model.py)
--
-- Returns a flat list: for each key `used` as a string (a number above 2^53 would lose digits in
-- Lua), or `error` for a key that is no such hash or whose `used` is no integer: that line alone is
-- not applied. A leading `l` marks an account that was lost and put back, `a` a line that was left
-- out since a higher sequence of the writer is kept. Then for each claim: held by others, granted.
--
-- Sums stop at 2^62. A hold that cannot be read is none.
--
-- Clocks: holds and expiry go by this server's. An expiry by a worker's clock that is behind would
-- delete the key with what was just debited: a key lives an hour from its last debit at least.
local MOST, FULL, HOUR = 4611686018427387904, '4611686018427387904', 3600
local writer, sequence = ARGV[1], tonumber(ARGV[2])
local lapse, share = tonumber(ARGV[3]), tonumber(ARGV[4])
local settled_by, held_by = 's:' .. writer, 'h:' .. writer
local now = tonumber(redis.call('TIME')[1])
local answer = {}

-- A key that is no count is the affair of its line. Any other error, as of a server that takes no
-- writes (READONLY, OOM, MISCONF), is the answer to the whole batch.
local function failed(reply)
  local why = type(reply) == 'table' and reply.err
  if not why then return false end
  for _, known in ipairs({'WRONGTYPE', 'not an integer'}) do
    if string.find(why, known, 1, true) then return true end
  end
  error(why)
end

-- returns what a field `used` says, as a string; false for what is no count
local function count(value)
  if failed(value) then return false end
  if not value then return '0' end
  local sign, digits = string.match(value, '^(%-?)([1-9]%d*)$')
  if not digits then return value == '0' and '0' end
  if #digits > 19 then return false end
  if sign == '-' then return '0' end
  return tonumber(digits) < MOST and digits or FULL
end

local function keep(key, expires_at)
  redis.call('EXPIREAT', key, string.format('%.0f', math.max(tonumber(expires_at), now + HOUR)))
end

-- returns a mark, or false for a key that cannot be kept
local function apply(key, amount, expires_at, settled, known)
  local last = redis.pcall('HGET', key, settled_by)
  if failed(last) then return false end
  last = tonumber(last) or 0
  if last >= sequence then
    if last > sequence and amount ~= '0' then return 'a' end
    return ''
  end
  local mark = ''
  if last < tonumber(settled) and tonumber(expires_at) > now then
    local used = count(redis.pcall('HGET', key, 'used'))
    if not used then return false end
    if tonumber(used) < tonumber(known) then
      mark = 'l'
      redis.call('HSET', key, 'used', known)
    end
    redis.call('HSET', key, settled_by, settled)
    keep(key, expires_at)
  end
  if amount ~= '0' then
    local total = redis.pcall('HINCRBY', key, 'used', amount)
    if type(total) == 'table' and string.find(total.err or '', 'overflow', 1, true) then
      total = MOST
    elseif failed(total) then
      return false
    end
    if total < 0 then redis.call('HSET', key, 'used', '0') end
    if total >= MOST then redis.call('HSET', key, 'used', FULL) end
    redis.call('HSET', key, settled_by, ARGV[2])
    keep(key, expires_at)
  end
  return mark
end

-- returns what others hold and what this writer holds now
local function claim(key, expires_at, limit, floor, need, spare, least)
  local fields = redis.call('HGETALL', key)
  local used, others, decided = 0, 0, nil
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'used' then
      used = tonumber(count(value))
    elseif string.sub(name, 1, 2) == 'h:' then
      local by, amount, till = string.match(value, '^(%d+):(%d+):(%d+)$')
      local sound = by and #by < 20 and #amount < 20 and #till < 20
      if sound and name == held_by then
        if tonumber(by) >= sequence then decided = tonumber(amount) end
      elseif sound and tonumber(till) <= now then
        redis.call('HDEL', key, name)
      elseif sound then
        others = others + tonumber(amount)
      end
    end
  end
  if decided then return others, decided end
  local granted, free = floor, limit - used - others - floor
  if free > 0 then
    local needed = math.min(need, free)
    if needed < least then needed = 0 end
    granted = floor + needed + math.min(spare, math.floor((free - needed) / share))
  end
  granted = math.min(granted, MOST)
  if granted > 0 then
    redis.call('HSET', key, held_by,
      string.format('%s:%.0f:%.0f', ARGV[2], granted, now + lapse))
    -- expiry 0: the account lives by its holds alone
    local till = expires_at == '0' and lapse or math.max(lapse, HOUR)
    redis.call('EXPIREAT', key, string.format('%.0f', math.max(tonumber(expires_at), now + till)))
  else
    redis.call('HDEL', key, held_by)
  end
  return others, granted
end

local at = 5
for i, key in ipairs(KEYS) do
  local mark = ''
  if ARGV[at] ~= '0' or ARGV[at + 2] ~= '0' then
    mark = apply(key, ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
  end
  local used = count(redis.pcall('HGET', key, 'used'))
  answer[i] = mark and used and mark .. used or 'error'
  at = at + 4
end
while ARGV[at] do
  local line = tonumber(ARGV[at])
  local others, granted = 0, 0 -- of an `error` nobody reads them
  if answer[line] ~= 'error' then
    others, granted = claim(KEYS[line], ARGV[2 + 4 * line], tonumber(ARGV[at + 1]),
      tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]),
      tonumber(ARGV[at + 5]))
  end
  answer[#answer + 1] = string.format('%.0f', others)
  answer[#answer + 1] = string.format('%.0f', granted)
  at = at + 6
end
return answer
