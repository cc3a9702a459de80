-- One request, the same each time; wrk passes what follows "--": method, body, "Name: value" headers.
function init(args)
  wrk.method = args[1]
  if args[2] ~= "" then
    wrk.body = args[2]
    wrk.headers["Content-Type"] = "application/json"
  end
  for place = 3, #args do
    local name, value = args[place]:match("^(.-): (.*)$")
    wrk.headers[name] = value
  end
end
