# Teks `gardu status`. Judul di kolom kiri paling panjang 15 huruf.
status-daemon = Layanan
status-clock = Jam
status-center = Pusat komando
status-outbox = Antrean kirim
status-card = Kartu memori
status-stages = Proses
status-about = versi { $version }, konfigurasi { $config }, berjalan { $uptime }
status-starting = sedang mulai; belum siap
status-clock-trusted = tersinkron
status-clock-untrusted = BELUM tersinkron: waktu kejadian ditandai belum pasti; periksa jaringan ke server waktu (NTP)
status-link-none = belum dimulai
status-link-connecting = sedang menghubungi { $url } ({ $duration })
status-link-connected = terhubung ke { $url } sejak { $duration }
status-link-waiting = terputus dari { $url } sejak { $duration }; mencoba lagi dalam { $retry }
status-last-reason = sebab terakhir: { $reason }
status-lane-a = alarm
status-lane-t = telemetri
status-lane-empty = { $lane }: kosong, semua terkirim; nomor berikutnya { $next }
status-lane-waiting = { $lane }: { $records } menunggu ({ $kib } KiB), tertua { $age }
status-written = { $total } ditulis sejak mulai; perkiraan per hari ada setelah satu jam
status-written-day = { $total } ditulis sejak mulai, sekitar { $day } per hari
status-written-budget = { $total } ditulis sejak mulai, sekitar { $day } per hari; anggaran { $budget }
status-disk = di disk: { $used } dari { $quota } MiB, terisi { $percent } %
status-disk-filling = di disk: { $used } dari { $quota } MiB, terisi { $percent } %; penuh dalam { $full }
status-disk-tight = DISK PENUH: antrean memakai ruang cadangan; hapus berkas lain yang memenuhi disk
status-disk-none = DISK PENUH, TIDAK ADA YANG DAPAT DICATAT: perangkat menunggu ruang; hapus berkas lain yang memenuhi disk
status-disk-unusable = ANTREAN TIDAK DAPAT DIPAKAI, CATATAN HANYA DI MEMORI: { $reason }
status-disk-evicting = di disk: { $used } dari { $quota } MiB, PENUH: telemetri tertua dilepas, lalu alarm yang paling ringan
status-stages-run = { $count } tahap, semuanya berjalan
status-stages-stuck = MACET: { $stages }
status-alarms-none = Tidak ada alarm yang masih berdiri.
status-alarms-some = Alarm yang masih berdiri: { $count }
status-alarms-more = … dan { $count } alarm lagi
status-test = uji
status-severity-critical = kritis
status-severity-high = tinggi
status-severity-medium = sedang
status-severity-low = rendah
status-severity-info = info
status-devices = Perangkat: { $count }, tidak menjawab: { $bad }
status-device-unknown = belum
status-device-good = baik
status-device-bad = rusak
status-device-never = belum pernah terbaca
status-device-last = terbaca { $age } lalu
status-reason-not-yet-read = belum dibaca sejak mulai
status-reason-timeout = tidak menjawab tepat waktu
status-reason-link-down = bus atau broker tidak terjangkau
status-reason-exception = perangkat menolak permintaan (exception Modbus)
status-reason-malformed = jawaban tidak dapat dipahami
status-reason-sentinel = perangkat menandai nilainya tidak sah
status-reason-out-of-range = nilai di luar batas wajar
status-reason-not-a-number = bukan angka
status-reason-stale = terlalu lama tidak ada kabar
status-seconds = { $large } detik
status-minutes = { $large } menit { $small } detik
status-hours = { $large } jam { $small } menit
status-days = { $large } hari { $small } jam
status-not-running =
    Gardu tidak menjawab di { $address }: { $reason }.
    Mulai layanannya: sudo systemctl start gardu
    Lihat sebabnya bila tetap mati: journalctl -u gardu -n 50
    Bila http.listen diubah di gardu.toml, sebutkan berkas itu: gardu status --config BERKAS
status-not-a-gateway =
    Yang menjawab di { $address } bukan Gardu versi ini: { $reason }.
    Periksa http.listen di gardu.toml dan program mana yang memakai port itu: sudo ss -ltnp
