# Texts of `gardu outbox`. Headings of the left column have at most 15 letters.
outbox-source = Source
outbox-source-daemon = the running daemon ({ $address })
outbox-source-stopped = the disk; the daemon is stopped
outbox-source-silent = the disk; process { $holder } holds the outbox but does not answer: { $reason }
outbox-verdict = Verdict
outbox-verdict-delivered = everything was delivered
outbox-verdict-waiting = { $count ->
        [one] { $count } record waits and goes out as soon as the command center takes it
       *[other] { $count } records wait and go out as soon as the command center takes them
    }
outbox-verdict-stopped = { $count ->
        [one] { $count } record waits
       *[other] { $count } records wait
    }, but the daemon is stopped: sudo systemctl start gardu
outbox-verdict-silent = { $count ->
        [one] { $count } record waits
       *[other] { $count } records wait
    }, but the daemon is stuck: sudo systemctl restart gardu
outbox-verdict-unreadable = SOMETHING CANNOT BE READ: see below
outbox-verdict-aside = DAMAGED PARTS WERE SET ASIDE: see below
outbox-verdict-tight = THE DISK IS FULL{ $since }: the outbox lives on the room it had kept; remove what does not belong there
outbox-verdict-no-room = THE DISK IS FULL{ $since }, NOTHING CAN BE RECORDED: remove what does not belong there, or take a larger card
outbox-verdict-since = {" "}since { $time }
outbox-verdict-full = FULL: the least important is dropped and declared; check the connection to the command center
outbox-verdict-soon = NEARLY FULL, in { $duration }: check the connection to the command center
outbox-space = Space
outbox-used = { $percent }% used: { $used } of { $quota }
outbox-full-in = full in { $duration }
outbox-lost = Lost
outbox-lost-none = nothing { $over }
outbox-lost-some = { $lane }: { $count } ({ $reason }), { $over }
outbox-lost-over-run = since the daemon started
outbox-lost-over-disk = as far as what is on the disk tells
outbox-loss-refused = refused by the command center
outbox-loss-quota = the outbox was full
outbox-loss-age = waited too long
outbox-loss-thinned = summed up by 15 minutes
outbox-loss-damaged = the store was damaged
outbox-lane-empty = { $lane }: empty, all delivered
outbox-lane-waiting = { $lane }: { $records } waiting ({ $size }), the oldest for { $age }
outbox-numbers = epoch { $epoch }, next number { $next }, settled up to { $settled }
outbox-generation-places = places { $places }
outbox-generation-waiting = { $count } waiting
outbox-generation-open = open
outbox-generation-sealed = sealed
outbox-unreadable = Cannot be read:
outbox-aside = Set aside because they are damaged:
outbox-aside-todo =
    Rescue what is in them, then remove the folder:
      sudo gardu outbox salvage { $path } -o salvaged.jsonl
outbox-list-empty = Nothing is waiting.
outbox-list-more = … and more: gardu outbox list --lane { $lane } --from { $from }
outbox-what-readings = { $count ->
        [one] { $count } reading
       *[other] { $count } readings
    }
outbox-what-lost = { $count } numbers of lane { $lane } lost ({ $reason })
outbox-exported = { $count } records copied ({ $size }). They will still be delivered as well; the command center knows a repeated id.
outbox-progress = { $done } records …
outbox-progress-of = { $percent }% …
outbox-salvaged = { $size } read: { $records } records and { $states } entries of state are whole, { $damaged } damaged.
outbox-salvage-skipped = { $size } could not be read from the medium and were passed over.
outbox-salvage-other-version = There are entries of format { $version }, which this version does not know: use the version that wrote them.
outbox-salvage-nothing = There is not one entry of Gardu. Check that this is the right folder, image or device.
outbox-no-outbox = { $path }: there is no outbox. Check outbox.path in gardu.toml; the daemon makes it when it first starts.
outbox-no-permission = { $path }: no permission to read it. Run this with sudo.
outbox-cannot-read = { $path }: cannot be read: { $reason }
outbox-unknown-format = { $path }: format { $reason } is not known to this version. Use the version that wrote it; nothing was changed.
outbox-cannot-create = { $path }: the file cannot be made: { $reason }. Choose another name, or check the medium.
outbox-cannot-write = { $path }: writing failed: { $reason }. The file is incomplete: remove it, check the free space, and try again.
outbox-cut-off = The daemon stopped answering half-way: { $reason }. What was written is incomplete; run the command again.
