# Texts of `gardu status`. Headings of the left column have at most 15 letters.
status-daemon = Daemon
status-clock = Clock
status-center = Command center
status-outbox = Outbox
status-card = Card
status-stages = Stages
status-about = version { $version }, configuration { $config }, running for { $uptime }
status-starting = starting; not ready yet
status-clock-trusted = synchronised
status-clock-untrusted = NOT synchronised: times of events are marked uncertain; check the way to the time server (NTP)
status-link-none = not started
status-link-connecting = connecting to { $url } ({ $duration })
status-link-connected = connected to { $url } for { $duration }
status-link-waiting = cut off from { $url } for { $duration }; next attempt in { $retry }
status-last-reason = last reason: { $reason }
status-lane-a = alarms
status-lane-t = telemetry
status-lane-empty = { $lane }: empty, all delivered; next number { $next }
status-lane-waiting = { $lane }: { $records } waiting ({ $kib } KiB), the oldest for { $age }
status-written = { $total } written since the start; what a day sees is known after an hour
status-written-day = { $total } written since the start, about { $day } a day
status-written-budget = { $total } written since the start, about { $day } a day; budget { $budget }
status-disk = on disk: { $used } of { $quota } MiB, { $percent } % full
status-disk-filling = on disk: { $used } of { $quota } MiB, { $percent } % full; full in { $full }
status-disk-tight = THE DISK IS FULL: the outbox lives on the room it had kept; remove what does not belong there
status-disk-none = THE DISK IS FULL, NOTHING CAN BE RECORDED: devices wait for room; remove what does not belong there
status-disk-unusable = THE OUTBOX CANNOT BE USED, RECORDS ARE IN MEMORY ONLY: { $reason }
status-disk-evicting = on disk: { $used } of { $quota } MiB, FULL: the oldest telemetry is given up, then the least urgent alarms
status-stages-run = { $count }, all of them running
status-stages-stuck = STUCK: { $stages }
status-alarms-none = No alarm stands.
status-alarms-some = Standing alarms: { $count }
status-alarms-more = … and { $count } more
status-test = test
status-severity-critical = critical
status-severity-high = high
status-severity-medium = medium
status-severity-low = low
status-severity-info = info
status-devices = Devices: { $count }, not answering: { $bad }
status-device-unknown = new
status-device-good = good
status-device-bad = bad
status-device-never = never read
status-device-last = read { $age } ago
status-reason-not-yet-read = not read since the start
status-reason-timeout = no answer in time
status-reason-link-down = bus or broker cannot be reached
status-reason-exception = the device refuses the request (Modbus exception)
status-reason-malformed = the answer makes no sense
status-reason-sentinel = the device calls its value invalid
status-reason-out-of-range = value outside its plausible range
status-reason-not-a-number = not a number
status-reason-stale = silent for too long
status-seconds = { $large } s
status-minutes = { $large } min { $small } s
status-hours = { $large } h { $small } min
status-days = { $large } d { $small } h
status-not-running =
    Gardu does not answer at { $address }: { $reason }.
    Start it: sudo systemctl start gardu
    If it does not stay up, see why: journalctl -u gardu -n 50
    If http.listen was changed in gardu.toml, name that file: gardu status --config FILE
status-not-a-gateway =
    What answers at { $address } is not this version of Gardu: { $reason }.
    Check http.listen in gardu.toml, and which program has that port: sudo ss -ltnp
