# command
refusal-malformed = The command cannot be read: check its JSON and the fields it needs
refusal-unknown-command = This version of the gateway does not know the command
refusal-retained = Retained commands are refused, they would act again at every connection; send it without retain
refusal-expired = The command has expired; send it again if it is still wanted
refusal-unknown-alarm = There is no such alarm
refusal-unknown-point = There is no such point
refusal-other-occurrence = The alarm has another occurrence by now; look at its present state and try again
refusal-other-epoch = The command names another epoch; look at the present state and try again
refusal-already-acknowledged = The alarm is already acknowledged
refusal-not-standing = The alarm is quiet, there is nothing to acknowledge
refusal-not-acknowledged = The alarm must be acknowledged before it is reset
refusal-still-active = The cause of the alarm is still there, it cannot be reset yet
refusal-not-latched = The alarm is not latched, there is nothing to reset
refusal-busy = Too many commands at once; try again in a moment
