# `gardu check`: problems of a configuration, each with what is wrong and what to write instead.
check-more = … and { $count } more.

# Files
check-file-missing = there is no such file; check its name, or give another one with --config
check-file-folder = this is a folder, not a file; name a .toml file
check-file-large = the file is larger than { $max }, as none of its kind is; check whether this is the right file
check-file-unreadable = the file cannot be read: { $reason }
check-files = too much: at most { $files } files in gardu.d and { $mib } MiB in all; join or move some
check-folder = the folder gardu.d cannot be read: { $reason }
check-utf8 = a byte here is not UTF-8; save the file again as UTF-8
check-io-missing = it does not exist
check-io-permission = no permission to read; allow the service's user gardu to
check-io-folder = it is a folder
check-io-not-folder = it is not a folder
check-io-large = it is too large
check-syntax = not valid TOML ({ $detail }); correct it, for example: key = "value"
check-twice = `{ $key }` is already written above; remove one
check-clash = `{ $name }` is already taken at { $place }; remove one or choose another
check-section-twice = section { $header } already stands at { $place }; put everything there

# Keys and sections
check-unknown-key-near = unknown key `{ $key }`; did you mean `{ $near }`?
check-unknown-key = unknown key `{ $key }`; known here: { $known }
check-missing = { $section } has no `{ $key }`; write for example: { $example }
check-missing-section = there is no section { $header }; write { $header } and for example: { $example }
check-sections = `{ $key }` is a list of sections; write { $header } for each
check-later = `{ $key }` is not supported by this version yet; remove it
check-later-value = `{ $value }` for `{ $key }` is not supported by this version yet; use another value

# Kinds of values
check-type = `{ $key }` must be { $want }, but this is { $have }
check-type-text = text in quotes
check-type-integer = a whole number
check-type-number = a number
check-type-bool = true or false
check-type-date = a date or time
check-type-list = a list [ … ]
check-type-table = a table { "{ … }" }
check-type-scalar = true, false, a number or text
check-range = `{ $key }` must be between { $low } and { $high }, not { $value }
check-negative = `{ $key }` must be 0 or more, not { $value }
check-finite = `{ $key }` must be an ordinary number, not nan, inf or one that is too large
check-duration = `{ $key }` does not know `{ $value }`; write a whole number and a unit: "500ms", "5s", "10m", "2h" or "7d"
check-size-a-day = `{ $key }` does not know `{ $value }`; write a whole number, a unit and "/day": "500MiB/day" or "2GiB/day"
check-size = `{ $key }` does not know `{ $value }`; write a whole number and a unit: "512KiB", "256MiB" or "1GiB"
check-whole-seconds = `{ $key }` must be whole seconds, for example "120s"
check-choice = `{ $key }` does not know `{ $value }`; choose one of: { $choices }
check-line = `{ $key }` must be one line of text, not empty, at most { $max } characters
check-empty-list = the list `{ $key }` is empty; give at least one
check-too-many = `{ $key }` holds too many; at most { $max }
check-only-true = `{ $key }` can only be true; remove it if it is not wanted

# Names
check-name = `{ $name }` is not a name; use 1 to 64 of a-z, 0-9, `_` and `-`
check-point-name = `{ $name }` is not the name of a point; write 2 to 4 segments such as panel/door
check-reserved = the name `{ $name }` is reserved by Gardu; choose another
check-timezone = `{ $value }` is not a time zone; write it like "Asia/Jakarta" or "UTC"

# Addresses
check-url = `{ $value }` is not an address known for `{ $key }`; write it like "{ $example }"
check-url-login = `{ $key }` must not hold a user name or password; remove what stands before the @ and use username and password_file
check-url-percent = percent signs are not understood in `{ $value }`; write the path as ls -l /dev/serial/by-id shows it
check-url-port = `{ $value }` has no port; write the one that is set in the converter, for example "{ $example }"
check-url-parameter-near = unknown parameter `{ $name }` in `{ $key }`; did you mean `{ $near }`?
check-url-parameter = unknown parameter `{ $name }` in `{ $key }`; known here: { $known }
check-url-parameter-twice = parameter `{ $name }` stands in `{ $key }` twice; remove one
check-url-parameter-value = parameter `{ $name }` in `{ $key }` does not know `{ $value }`; choose one of: { $choices }
check-url-server-name = no certificate can be for `{ $value }`, so mqtts:// cannot be used with it; write the broker's DNS name or its address
check-listen = `{ $value }` is not an address for `{ $key }`; write IP address and port like "127.0.0.1:1883"
check-listen-open = this address can be reached from the network, so a login is required; add username and password_file, or client_ca_file with TLS, or use 127.0.0.1
check-url-or-listen = write url (the gateway subscribes at a broker) or listen (devices publish straight to the gateway), not both
check-no-endpoint = { $section } has neither url nor listen; write for example: url = "mqtt://127.0.0.1:1883"
check-client-decides = `{ $name }` is decided by the device that connects; remove it when you use listen
check-topic-prefix = `{ $value }` cannot begin a topic; write it without + # $ and without slashes at its ends, for example "gardu/v1"
check-subscriber = `{ $key }` = "subscriber" needs MQTT 5; use protocol = "v5", or delivered_when = "puback"

# Secrets
check-password-alone = password_file without username; add username
check-credentials = CREDENTIALS_DIRECTORY is not set; run under systemd with LoadCredential, or write the file's full path
check-variable = `{ $value }` holds a variable that is not expanded here; only { "${CREDENTIALS_DIRECTORY}" } at the start of a *_file key is, else write the full path
check-secret-unreadable = the secret file { $path } cannot be read: { $reason }; make it with the password on one line, readable for the service's user gardu
check-secret-utf8 = the secret file { $path } is not UTF-8 text; put the password into it on one line
check-secret-empty = the secret file { $path } is empty; put the password into it on one line

# TLS
check-tls-plain = `{ $key }` is only for addresses that begin with mqtts://, and there is none here; write the address so, or remove this key
check-tls-listen = `{ $key }` is only for `listen`; with an address of a broker, ca_file, client_cert_file and client_key_file are meant
check-tls-pair = `{ $key }` needs `{ $other }` beside it: the certificate says who the gateway is, the key proves it; add the other or remove this one
check-pem-unreadable = the file { $path } cannot be read: { $reason }; put the PEM file there, readable for the service's user gardu
check-pem-no-certificate = there is no certificate in { $path }; PEM files have a line -----BEGIN CERTIFICATE-----, a binary one is converted by: openssl x509 -inform der -in OLD -out NEW
check-pem-no-key = there is no private key in { $path }; PEM files have a line -----BEGIN PRIVATE KEY-----, a binary one is converted by: openssl pkey -inform der -in OLD -out NEW
check-pem-broken = the PEM text in { $path } is damaged; copy the whole file again, with its BEGIN and END lines
check-pem-certificate = a certificate in { $path } cannot be used, it is damaged or another kind of file; get it again from who issued it
check-pem-key-encrypted = the private key in { $path } is locked with a password that nobody can type at a start; unlock it with: openssl pkey -in OLD -out NEW
check-pem-key-kind = the private key in { $path } is of a kind that cannot be used; use ECDSA (P-256 or P-384), Ed25519, or RSA of 2048 to 4096 bits
check-pem-key-other = the private key in { $path } does not belong to the certificate; use the key that the certificate was requested with

# Modbus
check-bus = { $section } `{ $name }` has no url, and no other bus has this name; write for example: url = "tcp://10.0.0.5:502"
check-bus-near = { $section } `{ $name }` has no url, and no bus has this name; did you mean `{ $near }`? if not, write its url
check-extends = bus `{ $name }` is written at { $place }; `{ $key }` can only be changed there
check-one-wire = this address already belongs to the bus at { $place }; one wire has one owner, add the devices to that bus
check-no-devices = { $section } has no device; add a [[modbus.device]]
check-no-points = { $section } has no point; add a [[modbus.device.point]]
check-unit = `{ $key }` = { $value } is not a Modbus address; use 1 to 247 (on TCP also 0 or 255)
check-unit-serial = `{ $key }` = { $value } is not the address of one device on a serial line; use 1 to 247
check-register = `{ $value }` is not a register; write coil:N, discrete:N, input:N or holding:N with N from 0 to 65535
check-register-end = the value takes { $width } registers and reaches beyond address 65535; use a lower address
check-bit = a coil or discrete input is one bit already; remove `{ $key }`, or use an input or holding register
check-bit-type = one bit can only be "bool"; write type = "bool" or remove bit
check-bits-are-bool = a coil or discrete input can only be "bool"; write type = "bool", or use an input or holding register
check-order = `{ $key }` only means something for values of two or more registers; remove it
check-length = `{ $key }` is only for type = "string"; remove it
check-only-numbers = `{ $name }` means nothing for bool and string; remove it
check-scale = `{ $key }` must not be 0; write a factor such as 0.1
check-range-order = `{ $key }` must go from the lower to the higher value, for example [0.0, 100.0]
check-range-two = `{ $key }` must hold two numbers, for example [0.0, 100.0]

# The gateway's own pins
check-no-contacts = { $section } has no contact; add a [[gpio.contact]]
check-line-taken = this line is already used at { $place }; one line has one contact
check-chip-taken = this chip on this bus is already written at { $place }; a bus can have one of them
check-no-inputs = { $section } has no point; add a [[i2c.point]] for each input that is connected
check-transformer = `{ $key }` is only for a point with input = "line-current"; add that or remove this key
check-device-file = `{ $value }` is not a device file for `{ $key }`; write its full path, for example "{ $example }"

# Profiles
check-profile-name = `{ $name }` is not the name of a profile; write it as its file is called, without .toml: a-z, 0-9, `.`, `_` and `-`, no folder
check-profile-near = there is no profile `{ $name }`, neither { $path } nor one that is part of Gardu; did you mean `{ $near }`?
check-profile = there is no profile `{ $name }`, neither { $path } nor one that is part of Gardu; known: { $known }
check-profiles = too many: at most { $max } different profiles; write the points of some devices without one
check-profile-empty = the profile has no point; add a [[point]]
check-profile-point-near = the profile has no point `{ $name }`; did you mean `{ $near }`?
check-profile-point = the profile has no point `{ $name }`; it has: { $known }
check-skip-alone = `{ $key }` names points of a profile, and this device has none; remove it, or add profile
check-skip-changed = `{ $name }` is left out by skip, so it cannot be changed; remove one of the two
check-points = too many: more than { $max } points with those of this profile; use skip, or another gateway for some devices

# MQTT
check-no-subscriptions = { $section } has no subscription; add a [[mqtt.subscribe]]
check-topic-wildcard = `{ $value }` has + or #; name every level that varies, for example { "sensors/{device}/{name}" }
check-capture = `{ $value }` must be fixed text as a whole, or a whole { "{name}" } of a-z, 0-9, `_` and `-`
check-capture-twice = { $value } is in the topic twice; give one another name
check-capture-unknown = { $value } is not in the topic; use a name that is
check-capture-unused = { $value } is not used in point, so that several devices would become one point; add it to point, or write fixed text in the topic
check-template = `{ $value }` is not part of a point's name; write a-z, 0-9, `_` and `-`, or a { "{name}" } of the topic
check-pointer = `{ $value }` is not a JSON pointer; write "" for the whole payload, or for example "/value"
check-stale-differs = the subscription at { $place } can name the same point with another `stale`; make topics and stale of both equal, or their points different

# Reports
check-deadband-report = `{ $key }` only means something with report = "change"; add that or remove it
check-deadband-type = `{ $key }` means nothing for bool and string; remove it

# Alarms
check-pattern = `{ $value }` is neither a point nor a pattern; write it like "panel/door" or "+/intrusion/#"
check-point-near = there is no point `{ $value }`; did you mean `{ $near }`?
check-point = there is no point `{ $value }`; add it to a [[modbus]], [[gpio]], [[i2c]] or [[mqtt]], or correct its name
check-pattern-nothing = no point fits the pattern `{ $value }`; correct it
check-when-empty = `{ $key }` has no condition; write one of: is, above, below, increments, stale or bad
check-when-one = `{ $key }` has several conditions; write one (above and below may stand together), and make the others alarms of their own
check-is = this point never says `{ $value }`: { $says }
check-says-bool = it says true or false
check-says-text = it says a text
check-says-number = it says a number
check-says-number-range = it says a number within its range
check-limit-type = `{ $key }` needs a number, but this point is another kind: { $says }; use is
check-limit-range = the limit `{ $key }` lies at or beyond the edge of the point's range, so the alarm could never be raised; change the limit or the range
check-limits-order = below must be less than above
check-deadband-limit = `{ $key }` needs above or below
check-deadband-wide = `{ $key }` is too wide: the alarm could not end before the opposite limit; it must be less than { $room }
check-increments = `{ $key }` is only for counters: u16, u32 or u64 without scale and offset
check-message-language = `{ $section }` lacks the gateway's language; add { $language } = "…"

# Plan
check-refused = { $count ->
    [one] { $count } problem.
   *[other] { $count } problems.
} This configuration is not used.
check-plan-ok = The configuration is valid: { $id } ({ $name })
check-plan-center = Command center: { $urls }
check-plan-plain = NOTE: user name and password go unencrypted to { $at }; write mqtts:// if the broker offers TLS
check-plan-plain-listen = NOTE: devices send user name and password unencrypted to { $at }; give tls_cert_file and tls_key_file if they can use TLS
check-plan-bus = Bus { $name } ({ $url })
check-plan-device = { $name }, unit { $unit }: points { $points }, requests { $requests } each { $poll }, about { $cycle } ms
check-plan-device-profile = { $name }, unit { $unit }, profile { $profile } version { $version }: points { $points }, requests { $requests } each { $poll }, about { $cycle } ms
check-plan-profile-file = your own profile: { $path }
check-plan-bus-sum = in all { $requests } requests a cycle, about { $cycle } ms; bus { $busy } % busy
check-plan-bus-over = WARNING: { $requests } requests a cycle, about { $cycle } ms; bus { $busy } % busy, polls will be late; lengthen poll
check-plan-bus-full = WARNING: { $requests } requests a cycle, about { $cycle } ms; bus { $busy } % busy, too little is left for slow or silent devices; lengthen poll
check-plan-timeout = WARNING: the longest answer takes { $longest } ms on this line, but timeout is { $timeout }; write timeout = "{ $needed }"
check-plan-port = hint: { $path } can become another port after a restart; write its name in /dev/serial/by-id
check-plan-serial = hint: { $devices }: devices of profile { $profile } come set to { $set }, this line is { $line }; set them to it if that has not been done
check-plan-unit = hint: { $devices } are the same unit { $unit }; on a serial line a late answer to one can be taken for the other's: write them as one device
check-plan-assumed-trip = assumed: { $ms } ms for one Modbus TCP request
check-plan-assumed-line = assumed on a serial line: devices begin to answer after { $turnaround } ms, a converter takes { $network } ms more
check-plan-gpio = Contacts { $name } ({ $at }): contacts { $count }, levels looked at each { $poll }
check-plan-i2c = Sensor { $name } ({ $at }): points { $count }, measured each { $poll }
check-plan-mqtt = MQTT { $name }: subscriptions { $count } at { $at }
check-plan-mqtt-listen = MQTT { $name }: subscriptions { $count }, devices publish to { $at }
check-plan-points = Points: { $points }
check-plan-open = Subscriptions whose messages name their points: { $count }; not counted in the data estimate
check-plan-rules = Alarm rules: { $rules } (built-in ones included)
check-plan-data = Telemetry data a month: about { $size }
check-plan-assumed-data = assumed: 30 days, { $batch } bytes a message and { $reading } bytes a reading, points on "change" change every { $change }; alarms are not counted
