# command
refusal-malformed = Perintah tidak dapat dibaca: periksa format JSON dan isian yang wajib
refusal-unknown-command = Perintah ini tidak dikenal oleh gateway versi ini
refusal-retained = Perintah yang disimpan broker (retained) ditolak karena akan terulang setiap kali tersambung; kirim tanpa retain
refusal-expired = Perintah sudah kedaluwarsa; kirim lagi jika masih diperlukan
refusal-unknown-alarm = Alarm ini tidak ada
refusal-unknown-point = Titik ukur ini tidak ada
refusal-other-occurrence = Alarm ini sudah berganti kejadian; lihat keadaan terbaru lalu ulangi
refusal-other-epoch = Perintah ini merujuk pada epoch yang lain; lihat keadaan terbaru lalu ulangi
refusal-already-acknowledged = Alarm ini sudah diakui
refusal-not-standing = Alarm ini sedang tidak aktif, tidak ada yang perlu diakui
refusal-not-acknowledged = Alarm harus diakui sebelum direset
refusal-still-active = Penyebab alarm masih ada, jadi belum dapat direset
refusal-not-latched = Alarm ini tidak terkunci, jadi tidak perlu direset
refusal-busy = Terlalu banyak perintah sekaligus; coba lagi sebentar lagi
