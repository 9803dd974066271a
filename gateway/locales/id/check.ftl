# `gardu check`: masalah konfigurasi, masing-masing dengan apa yang salah dan apa yang ditulis sebagai gantinya.
check-more = … dan { $count } masalah lagi.

# Berkas
check-file-missing = berkas tidak ada; periksa namanya, atau beri berkas lain dengan --config
check-file-folder = ini folder, bukan berkas; sebutkan berkas .toml
check-file-large = berkas lebih besar dari { $max }, padahal berkas sejenis tidak sebesar itu; periksa apakah ini berkas yang benar
check-file-unreadable = berkas tidak dapat dibaca: { $reason }
check-files = terlalu banyak: paling banyak { $files } berkas di gardu.d dan { $mib } MiB seluruhnya; gabungkan atau pindahkan sebagian
check-folder = folder gardu.d tidak dapat dibaca: { $reason }
check-utf8 = ada bita yang bukan UTF-8; simpan ulang berkas ini sebagai UTF-8
check-io-missing = tidak ada
check-io-permission = tidak ada izin baca; beri izin kepada pengguna layanan gardu
check-io-folder = ini folder
check-io-not-folder = ini bukan folder
check-io-large = terlalu besar
check-syntax = bukan TOML yang sah ({ $detail }); perbaiki penulisannya, misalnya kunci = "nilai"
check-twice = `{ $key }` sudah ditulis sebelumnya; hapus salah satu
check-clash = `{ $name }` sudah dipakai di { $place }; hapus salah satu atau pilih yang lain
check-section-twice = bagian { $header } sudah ada di { $place }; satukan isinya di sana

# Kunci dan bagian
check-unknown-key-near = kunci `{ $key }` tidak dikenal; mungkin maksudnya `{ $near }`
check-unknown-key = kunci `{ $key }` tidak dikenal di sini; yang dikenal: { $known }
check-missing = { $section } tidak memiliki `{ $key }`; tulis misalnya: { $example }
check-missing-section = bagian { $header } tidak ada; tulis { $header } lalu misalnya: { $example }
check-sections = `{ $key }` adalah daftar bagian; tulis { $header } untuk tiap bagian
check-later = `{ $key }` belum didukung versi ini; hapus kunci ini
check-later-value = `{ $value }` untuk `{ $key }` belum didukung versi ini; pakai nilai lain

# Jenis nilai
check-type = `{ $key }` harus berupa { $want }, tetapi di sini { $have }
check-type-text = teks dalam tanda kutip
check-type-integer = bilangan bulat
check-type-number = bilangan
check-type-bool = true atau false
check-type-date = tanggal atau jam
check-type-list = daftar [ … ]
check-type-table = tabel { "{ … }" }
check-type-scalar = true, false, bilangan atau teks
check-range = `{ $key }` harus antara { $low } dan { $high }, bukan { $value }
check-negative = `{ $key }` harus 0 atau lebih, bukan { $value }
check-finite = `{ $key }` harus bilangan biasa, bukan nan, inf atau bilangan yang terlalu besar
check-duration = `{ $key }` tidak mengenal `{ $value }`; tulis bilangan bulat dan satuan: "500ms", "5s", "10m", "2h" atau "7d"
check-size-a-day = `{ $key }` tidak mengenal `{ $value }`; tulis bilangan bulat, satuan, dan "/day": "500MiB/day" atau "2GiB/day"
check-size = `{ $key }` tidak mengenal `{ $value }`; tulis bilangan bulat dan satuan: "512KiB", "256MiB" atau "1GiB"
check-whole-seconds = `{ $key }` harus detik penuh, misalnya "120s"
check-choice = `{ $key }` tidak mengenal `{ $value }`; pilih salah satu: { $choices }
check-line = `{ $key }` harus satu baris teks, tidak kosong, paling panjang { $max } karakter
check-empty-list = daftar `{ $key }` kosong; isi paling sedikit satu
check-too-many = `{ $key }` berisi terlalu banyak; paling banyak { $max }
check-only-true = `{ $key }` hanya bisa true; hapus kunci ini bila tidak dipakai

# Nama
check-name = `{ $name }` bukan nama yang sah; pakai 1 sampai 64 karakter a-z, 0-9, `_` dan `-`
check-point-name = `{ $name }` bukan nama titik; tulis 2 sampai 4 bagian seperti panel/door
check-reserved = nama `{ $name }` dipakai oleh Gardu sendiri; pilih nama lain
check-timezone = `{ $value }` bukan zona waktu; tulis seperti "Asia/Jakarta" atau "UTC"

# Alamat
check-url = `{ $value }` bukan alamat yang dikenal untuk `{ $key }`; tulis seperti "{ $example }"
check-url-login = `{ $key }` tidak boleh berisi nama pengguna atau kata sandi; hapus bagian sebelum @ dan pakai username dan password_file
check-url-percent = tanda persen tidak dikenal dalam `{ $value }`; tulis seperti yang ditampilkan ls -l /dev/serial/by-id
check-url-port = `{ $value }` tidak memiliki port; tulis port yang diatur pada konverter, misalnya "{ $example }"
check-url-parameter-near = parameter `{ $name }` dalam `{ $key }` tidak dikenal; mungkin maksudnya `{ $near }`?
check-url-parameter = parameter `{ $name }` dalam `{ $key }` tidak dikenal; yang dikenal di sini: { $known }
check-url-parameter-twice = parameter `{ $name }` ditulis dua kali dalam `{ $key }`; hapus salah satu
check-url-parameter-value = parameter `{ $name }` dalam `{ $key }` tidak mengenal `{ $value }`; pilih salah satu: { $choices }
check-url-server-name = tidak ada sertifikat yang dapat dibuat untuk `{ $value }`, jadi mqtts:// tidak dapat dipakai; tulis nama DNS broker atau alamat IP-nya
check-listen = `{ $value }` bukan alamat untuk `{ $key }`; tulis alamat IP dan port seperti "127.0.0.1:1883"
check-listen-open = alamat ini dapat dicapai dari jaringan, jadi wajib memakai login; tambahkan username dan password_file, atau client_ca_file dengan TLS, atau pakai 127.0.0.1
check-url-or-listen = tulis url (gateway berlangganan di broker) atau listen (perangkat mengirim langsung ke gateway), jangan keduanya
check-no-endpoint = { $section } tidak memiliki url maupun listen; tulis misalnya: url = "mqtt://127.0.0.1:1883"
check-client-decides = `{ $name }` ditentukan oleh perangkat yang tersambung; hapus bila memakai listen
check-topic-prefix = `{ $value }` tidak bisa menjadi awal topik; tulis tanpa + # $ dan tanpa garis miring di tepi, misalnya "gardu/v1"
check-subscriber = `{ $key }` = "subscriber" memerlukan MQTT 5; pakai protocol = "v5", atau delivered_when = "puback"

# Rahasia
check-password-alone = password_file tanpa username; tambahkan username
check-credentials = CREDENTIALS_DIRECTORY tidak ditetapkan; jalankan lewat systemd dengan LoadCredential, atau tulis jalur berkas yang lengkap
check-variable = `{ $value }` berisi variabel yang tidak diganti di sini; hanya { "${CREDENTIALS_DIRECTORY}" } di awal kunci *_file, selain itu tulis jalur lengkap
check-secret-unreadable = berkas rahasia { $path } tidak dapat dibaca: { $reason }; buat berkas itu berisi kata sandi dalam satu baris, terbaca oleh pengguna layanan gardu
check-secret-utf8 = berkas rahasia { $path } bukan teks UTF-8; isi dengan kata sandi dalam satu baris
check-secret-empty = berkas rahasia { $path } kosong; isi dengan kata sandi dalam satu baris

# TLS
check-tls-plain = `{ $key }` hanya untuk alamat yang diawali mqtts://, dan di sini tidak ada; tulis alamatnya demikian, atau hapus kunci ini
check-tls-listen = `{ $key }` hanya untuk `listen`; untuk alamat broker, yang dimaksud adalah ca_file, client_cert_file dan client_key_file
check-tls-pair = `{ $key }` memerlukan `{ $other }`: sertifikat menyatakan siapa gateway ini, kunci membuktikannya; tambahkan pasangannya atau hapus yang ini
check-pem-unreadable = berkas { $path } tidak dapat dibaca: { $reason }; letakkan berkas PEM di sana, terbaca oleh pengguna layanan gardu
check-pem-no-certificate = tidak ada sertifikat di { $path }; berkas PEM memiliki baris -----BEGIN CERTIFICATE-----, berkas biner diubah dengan: openssl x509 -inform der -in LAMA -out BARU
check-pem-no-key = tidak ada kunci privat di { $path }; berkas PEM memiliki baris -----BEGIN PRIVATE KEY-----, berkas biner diubah dengan: openssl pkey -inform der -in LAMA -out BARU
check-pem-broken = teks PEM di { $path } rusak; salin ulang seluruh berkas, termasuk baris BEGIN dan END
check-pem-certificate = sertifikat di { $path } tidak dapat dipakai, rusak atau jenis berkas lain; minta lagi kepada penerbitnya
check-pem-key-encrypted = kunci privat di { $path } dikunci kata sandi, yang tidak dapat diketik saat layanan mulai; buka dengan: openssl pkey -in LAMA -out BARU
check-pem-key-kind = jenis kunci privat di { $path } tidak dapat dipakai; pakai ECDSA (P-256 atau P-384), Ed25519, atau RSA 2048 sampai 4096 bit
check-pem-key-other = kunci privat di { $path } bukan pasangan sertifikatnya; pakai kunci yang dipakai saat meminta sertifikat itu

# Modbus
check-bus = { $section } `{ $name }` tidak memiliki url, dan tidak ada bus lain bernama itu; tulis misalnya: url = "tcp://10.0.0.5:502"
check-bus-near = { $section } `{ $name }` tidak memiliki url, dan tidak ada bus bernama itu; mungkin maksudnya `{ $near }`, jika bukan tulis url
check-extends = bus `{ $name }` sudah ditulis di { $place }; `{ $key }` hanya bisa diubah di sana
check-one-wire = alamat ini sudah dipakai bus di { $place }; satu kabel punya satu pemilik, tambahkan perangkat pada bus itu
check-no-devices = { $section } tidak memiliki perangkat; tambahkan [[modbus.device]]
check-no-points = { $section } tidak memiliki titik; tambahkan [[modbus.device.point]]
check-unit = `{ $key }` = { $value } bukan alamat Modbus; pakai 1 sampai 247 (pada TCP juga 0 atau 255)
check-unit-serial = `{ $key }` = { $value } bukan alamat satu perangkat di kabel serial; pakai 1 sampai 247
check-register = `{ $value }` bukan register; tulis coil:N, discrete:N, input:N atau holding:N dengan N dari 0 sampai 65535
check-register-end = nilai ini memerlukan { $width } register dan melewati alamat 65535; pakai alamat yang lebih kecil
check-bit = coil dan discrete sudah berupa satu bit; hapus `{ $key }`, atau pakai register input atau holding
check-bit-type = satu bit hanya bisa "bool"; tulis type = "bool" atau hapus bit
check-bits-are-bool = coil dan discrete hanya bisa "bool"; tulis type = "bool", atau pakai register input atau holding
check-order = `{ $key }` hanya berarti untuk nilai dari dua register atau lebih; hapus kunci ini
check-length = `{ $key }` hanya untuk type = "string"; hapus kunci ini
check-only-numbers = `{ $name }` tidak berarti untuk bool dan string; hapus kunci ini
check-scale = `{ $key }` tidak boleh 0; tulis pengali seperti 0.1
check-range-order = `{ $key }` harus dari nilai rendah ke nilai tinggi, misalnya [0.0, 100.0]
check-range-two = `{ $key }` harus berisi dua bilangan, misalnya [0.0, 100.0]

# Pin gateway sendiri
check-no-contacts = { $section } tidak memiliki kontak; tambahkan [[gpio.contact]]
check-line-taken = jalur ini sudah dipakai di { $place }; satu jalur untuk satu kontak
check-chip-taken = cip ini di bus ini sudah ditulis di { $place }; satu bus hanya dapat memuat satu cip seperti ini
check-no-inputs = { $section } tidak memiliki titik; tambahkan [[i2c.point]] untuk setiap masukan yang terpasang
check-transformer = `{ $key }` hanya untuk titik dengan input = "line-current"; tambahkan titik itu, atau hapus kunci ini
check-device-file = `{ $value }` bukan berkas perangkat untuk `{ $key }`; tulis path lengkapnya, misalnya "{ $example }"

# Profil
check-profile-name = `{ $name }` bukan nama profil; tulis seperti nama berkasnya tanpa .toml: a-z, 0-9, `.`, `_` dan `-`, tanpa folder
check-profile-near = profil `{ $name }` tidak ada, baik { $path } maupun bawaan Gardu; mungkin maksudnya `{ $near }`
check-profile = profil `{ $name }` tidak ada, baik { $path } maupun bawaan Gardu; yang dikenal: { $known }
check-profiles = terlalu banyak: paling banyak { $max } profil yang berbeda; tulis titik sebagian perangkat tanpa profil
check-profile-empty = profil ini tidak memiliki titik; tambahkan [[point]]
check-profile-point-near = profil ini tidak memiliki titik `{ $name }`; mungkin maksudnya `{ $near }`
check-profile-point = profil ini tidak memiliki titik `{ $name }`; titiknya: { $known }
check-skip-alone = `{ $key }` menyebut titik dari profil, sedangkan perangkat ini tidak memakai profil; hapus, atau tambahkan profile
check-skip-changed = `{ $name }` sudah dilewati oleh skip, jadi tidak dapat diubah; hapus salah satu
check-points = terlalu banyak: lebih dari { $max } titik bersama titik profil ini; pakai skip, atau gateway lain untuk sebagian perangkat

# MQTT
check-no-subscriptions = { $section } tidak memiliki langganan; tambahkan [[mqtt.subscribe]]
check-topic-wildcard = `{ $value }` memakai + atau #; beri nama tiap bagian yang berubah, misalnya { "sensors/{device}/{name}" }
check-capture = `{ $value }` harus seluruhnya teks tetap, atau seluruhnya { "{nama}" } dengan a-z, 0-9, `_` dan `-`
check-capture-twice = { $value } muncul dua kali dalam topik; beri nama lain
check-capture-unknown = { $value } tidak ada dalam topik; pakai nama yang ada di sana
check-capture-unused = { $value } tidak dipakai dalam point, sehingga beberapa perangkat menjadi satu titik; tambahkan di point, atau tulis teks tetap di topik
check-template = `{ $value }` bukan bagian nama titik; tulis a-z, 0-9, `_` dan `-`, atau { "{nama}" } dari topik
check-pointer = `{ $value }` bukan JSON pointer; tulis "" untuk seluruh isi pesan, atau misalnya "/value"
check-stale-differs = langganan di { $place } dapat menamai titik yang sama dengan `stale` yang berbeda; samakan topik dan stale keduanya, atau bedakan nama titiknya

# Laporan
check-deadband-report = `{ $key }` hanya berarti dengan report = "change"; tambahkan itu atau hapus kunci ini
check-deadband-type = `{ $key }` tidak berarti untuk bool dan string; hapus kunci ini

# Alarm
check-pattern = `{ $value }` bukan titik maupun pola; tulis seperti "panel/door" atau "+/intrusion/#"
check-point-near = titik `{ $value }` tidak ada; mungkin maksudnya `{ $near }`
check-point = titik `{ $value }` tidak ada; tambahkan titik itu pada [[modbus]], [[gpio]], [[i2c]] atau [[mqtt]], atau perbaiki namanya
check-pattern-nothing = tidak ada titik yang cocok dengan pola `{ $value }`; perbaiki polanya
check-when-empty = `{ $key }` tidak berisi syarat; tulis salah satu: is, above, below, increments, stale atau bad
check-when-one = `{ $key }` berisi beberapa syarat; tulis satu saja (above dan below boleh bersama), yang lain menjadi alarm tersendiri
check-is = titik ini tidak pernah bernilai `{ $value }`: { $says }
check-says-bool = nilainya true atau false
check-says-text = nilainya teks
check-says-number = nilainya bilangan
check-says-number-range = nilainya bilangan di dalam range titik itu
check-limit-type = `{ $key }` memerlukan bilangan, tetapi titik ini lain: { $says }; pakai is
check-limit-range = batas `{ $key }` terletak di tepi atau di luar range titik ini, jadi alarm tidak akan pernah berbunyi; ubah batas atau range
check-limits-order = below harus lebih kecil dari above
check-deadband-limit = `{ $key }` memerlukan above atau below
check-deadband-wide = `{ $key }` terlalu lebar: alarm tidak dapat berakhir sebelum batas di seberangnya; harus kurang dari { $room }
check-increments = `{ $key }` hanya untuk pencacah: u16, u32 atau u64 tanpa scale dan offset
check-message-language = `{ $section }` tidak memiliki bahasa gateway; tambahkan { $language } = "…"

# Rencana
check-refused = { $count } masalah. Konfigurasi ini tidak dipakai.
check-plan-ok = Konfigurasi sah: { $id } ({ $name })
check-plan-center = Pusat komando: { $urls }
check-plan-plain = CATATAN: nama pengguna dan kata sandi dikirim ke { $at } tanpa enkripsi; tulis mqtts:// bila broker menyediakan TLS
check-plan-plain-listen = CATATAN: perangkat mengirim nama pengguna dan kata sandi ke { $at } tanpa enkripsi; beri tls_cert_file dan tls_key_file bila perangkat mendukung TLS
check-plan-bus = Bus { $name } ({ $url })
check-plan-device = { $name }, unit { $unit }: { $points } titik, { $requests } permintaan tiap { $poll }, sekitar { $cycle } ms
check-plan-device-profile = { $name }, unit { $unit }, profil { $profile } versi { $version }: { $points } titik, { $requests } permintaan tiap { $poll }, sekitar { $cycle } ms
check-plan-profile-file = profil Anda sendiri: { $path }
check-plan-bus-sum = seluruhnya { $requests } permintaan per putaran, sekitar { $cycle } ms; bus sibuk { $busy } %
check-plan-bus-over = PERINGATAN: { $requests } permintaan per putaran, sekitar { $cycle } ms; bus sibuk { $busy } %, poll tidak akan tercapai; perpanjang poll
check-plan-bus-full = PERINGATAN: { $requests } permintaan per putaran, sekitar { $cycle } ms; bus sibuk { $busy } %, sisa waktu kurang untuk perangkat yang lambat atau diam; perpanjang poll
check-plan-timeout = PERINGATAN: jawaban terpanjang memerlukan { $longest } ms di kabel ini, sedangkan timeout { $timeout }; tulis timeout = "{ $needed }"
check-plan-port = saran: { $path } dapat menjadi port lain setelah dinyalakan ulang; tulis namanya di /dev/serial/by-id
check-plan-serial = saran: { $devices }: perangkat dengan profil { $profile } bawaannya disetel { $set }, sedangkan kabel ini { $line }; samakan setelan perangkatnya bila belum
check-plan-unit = saran: { $devices } adalah unit { $unit } yang sama; di kabel serial jawaban yang terlambat bisa tertukar di antara keduanya: tulis sebagai satu perangkat
check-plan-assumed-trip = anggapan: { $ms } ms untuk satu permintaan Modbus TCP
check-plan-assumed-line = anggapan untuk kabel serial: perangkat mulai menjawab setelah { $turnaround } ms, lewat konverter { $network } ms lebih lama
check-plan-gpio = Kontak { $name } ({ $at }): { $count } kontak, diperiksa tiap { $poll }
check-plan-i2c = Sensor { $name } ({ $at }): { $count } titik, diukur tiap { $poll }
check-plan-mqtt = MQTT { $name }: { $count } langganan di { $at }
check-plan-mqtt-listen = MQTT { $name }: { $count } langganan, menerima perangkat di { $at }
check-plan-points = Titik: { $points }
check-plan-open = Langganan yang titiknya dinamai oleh pesannya: { $count }; tidak dihitung dalam perkiraan data
check-plan-rules = Aturan alarm: { $rules } (termasuk bawaan)
check-plan-data = Data telemetri sebulan: sekitar { $size }
check-plan-assumed-data = anggapan: 30 hari, { $batch } bita per pesan dan { $reading } bita per pembacaan, titik "change" berubah tiap { $change }; alarm tidak dihitung
