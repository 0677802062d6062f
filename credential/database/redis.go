package database

import (
	"fmt"
	"strings"
)

// refusedCommands are Redis's commands that no definition allows: they are the server's
// administrators', change as whom a connection is logged in, or have the server connect
// elsewhere.
var refusedCommands = map[string]bool{
	"ACL": true, "AUTH": true, "BGREWRITEAOF": true, "BGSAVE": true, "CLUSTER": true, "CONFIG": true, "DEBUG": true, "FAILOVER": true,
	"LATENCY": true, "MIGRATE": true, "MODULE": true, "MONITOR": true, "PFDEBUG": true, "PFSELFTEST": true, "PSYNC": true, "REPLCONF": true, "REPLICAOF": true,
	"RESET": true, "RESTORE-ASKING": true, "ROLE": true, "SAVE": true, "SHUTDOWN": true, "SLAVEOF": true, "SLOWLOG": true, "SWAPDB": true, "SYNC": true,
}

// clientCommands are the parts of CLIENT that are about the connection itself.
var clientCommands = map[string]bool{
	"CACHING": true, "GETNAME": true, "GETREDIR": true, "HELP": true, "ID": true, "INFO": true, "NO-EVICT": true, "NO-TOUCH": true,
	"REPLY": true, "SETINFO": true, "SETNAME": true, "TRACKING": true, "TRACKINGINFO": true,
}

// unasked are commands that are allowed in any case: of the connection, and of transactions.
var unasked = map[string]bool{
	"PING": true, "ECHO": true, "QUIT": true, "HELLO": true, "CLIENT": true, "SELECT": true, "COMMAND": true,
	"MULTI": true, "EXEC": true, "DISCARD": true, "WATCH": true, "UNWATCH": true,
}

func commandName(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_'
	})
}

// JudgeCommand returns nil if a command of Redis's may be sent. The name and the second
// word, if there is one, are as they are sent.
func (d *Definition) JudgeCommand(name, second string) error {
	name, second = strings.ToUpper(name), strings.ToUpper(second)
	switch {
	case !commandName(name):
		return fmt.Errorf("%.40q is not a command", name)
	case refusedCommands[name]:
		return fmt.Errorf("%s is not allowed to anybody here", name)
	case name == "CLIENT" && !clientCommands[second]:
		return fmt.Errorf("CLIENT %.40q is not allowed to anybody here", second)
	case name == "SELECT" && second != d.name:
		return fmt.Errorf("the connection stays with database %s", d.name)
	case len(d.allowed) > 0 && !d.allowed[name] && !unasked[name]:
		return fmt.Errorf("%s is not among the commands that are allowed", name)
	}
	return nil
}
