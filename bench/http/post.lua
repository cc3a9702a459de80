-- One POST, the same each time; wrk passes what follows "--": the platform key and the body.
function init(args)
  wrk.method = "POST"
  wrk.headers["X-Platform-Key"] = args[1]
  wrk.headers["Content-Type"] = "application/json"
  if args[2] ~= "" then wrk.body = args[2] end
end
