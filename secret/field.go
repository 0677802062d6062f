package secret

// A Field is one named value of several that belong together, such as a password
// and its user name.
type Field struct {
	Name  string
	Value Bytes
	// Public is true for what is not secret, such as a user name.
	Public bool
}
