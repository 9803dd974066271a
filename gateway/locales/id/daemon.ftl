# Perintah dan pesan daemon.
cli-about = Gardu, gerbang alarm untuk ruang publik
cli-usage = Cara pakai
cli-commands = Perintah
cli-options = Pilihan
cli-run = Menjalankan daemon
cli-check = Memeriksa konfigurasi dan menampilkan rencananya
cli-status = Menampilkan keadaan daemon yang sedang berjalan
cli-demo = Taman simulasi lengkap dalam satu proses, tanpa memasang apa pun
cli-demo-for = Berhenti setelah selama ini, lalu tampilkan ringkasan (contoh: 30s, 5m)
cli-config = Berkas konfigurasi
cli-lang = Bahasa teks: id atau en
cli-json = Keluaran JSON untuk program
cli-help = Menampilkan bantuan
cli-version = Menampilkan versi
cli-bad-duration = { $text } bukan lama waktu: tulis angka dan satuan, misalnya 30s, 5m atau 1h
daemon-cannot-start = gardu tidak dapat berjalan: { $reason }
daemon-stopped = gardu berhenti: { $reason }
