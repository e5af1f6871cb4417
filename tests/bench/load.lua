-- Requests of wrk: METHOD PATH KEYS SPREAD. ":id" in the path cycles through KEYS ids, spread over SPREAD rows.
local requests, at = {}, 0

function init(args)
  local method, path, keys, spread = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  if method == "POST" then
    wrk.body = '{"name":"Lamp","category":"bench","price":"19.90","stock":3}'
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
  end
  for n = 1, keys do
    local id = 1 + math.floor((n - 1) * spread / keys)
    requests[n] = wrk.format(method, (path:gsub(":id", id)))
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"microseconds":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
