# Teks alarm bawaan.
alarm-communication = Perangkat { $device } tidak menjawab
alarm-stale = Titik { $point } tidak mengirim data
alarm-rule = Alarm { $rule } pada { $point }
alarm-test = Alarm uji
alarm-delivery-refused = Broker pusat komando menolak kiriman gateway ini; periksa hak aksesnya (ACL)
alarm-identity-conflict = Gateway lain tersambung dengan id gateway ini; beri masing-masing `gateway.id` sendiri
alarm-flash-budget = Gateway ini menulis ke kartu memori lebih banyak per hari daripada `outbox.write_budget`; kartu lebih cepat aus
alarm-outbox-evicting = Antrean kirim penuh: telemetri tertua dilepas, lalu alarm yang paling ringan; pulihkan sambungan ke pusat komando
alarm-outbox-full = Kartu memori penuh: gateway memakai ruang cadangan, dan bila itu habis tidak ada lagi yang dapat dicatat; hapus berkas lain yang memenuhi kartu
alarm-outbox-filling = Antrean kirim hampir penuh: penuh dalam 24 jam atau sudah di atas 80 %; periksa sambungan ke pusat komando
alarm-outbox-unusable = Antrean kirim tidak dapat dipakai: alarm hanya tersimpan di memori, dan yang belum terkirim hilang bila listrik padam; periksa kartu memori (`gardu status` menyebut sebabnya)
