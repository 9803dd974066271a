# Commands and messages of the daemon.
cli-about = Gardu, the alarm gateway of a public place
cli-usage = Usage
cli-commands = Commands
cli-options = Options
cli-run = Run the daemon
cli-check = Check the configuration and show its plan
cli-status = Show how the running daemon is doing
cli-demo = A whole simulated park in one process, nothing to install
cli-demo-for = Stop after this long and print a summary (such as 30s or 5m)
cli-config = Configuration file
cli-lang = Language of texts: id or en
cli-json = JSON for programs
cli-help = Show this help
cli-version = Show the version
cli-bad-duration = { $text } is not a duration: write a number and a unit, such as 30s, 5m or 1h
daemon-cannot-start = gardu cannot start: { $reason }
daemon-stopped = gardu stopped: { $reason }
