# Texts of built-in alarms.
alarm-communication = Device { $device } does not answer
alarm-stale = Point { $point } sends nothing
alarm-rule = Alarm { $rule } at { $point }
alarm-test = Test alarm
alarm-delivery-refused = The command center's broker refuses what this gateway sends; check its access rights (ACL)
alarm-identity-conflict = Another gateway connects with this gateway's id; give each its own `gateway.id`
alarm-flash-budget = This gateway writes more to its card a day than `outbox.write_budget` allows; the card will wear out sooner
alarm-outbox-evicting = The outbox is full: the oldest telemetry is given up, then the least urgent alarms; restore the link to the command center
alarm-outbox-full = The disk of the outbox is full: the gateway lives on the room it had kept, and when that is used up it can record nothing more; remove what does not belong on the card
alarm-outbox-filling = The outbox is filling up: full within 24 hours or above 80 %; check the link to the command center
alarm-outbox-unusable = The outbox cannot be used: alarms are kept in memory only, and a power cut takes those not yet delivered; look at the card (`gardu status` says why)
