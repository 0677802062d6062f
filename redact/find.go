package redact

// A Found is text in the shape of a secret.
type Found struct {
	Shape      string // its name, such as openai-key
	Start, End int
}

// Find returns what in a text has the shape of a secret, in the order of the text. The
// handles that stand in place of secrets are none.
func Find(text []byte) (list []Found) {
	s := shaped{held: text}
	for at := next(text, 0); at < len(text); at = next(text, at) {
		candidates := byFirst[text[at]]
		if candidates == nil || !beginsAfter(text[:at]) {
			at++
			continue
		}
		found, end := s.match(candidates, at, true)
		if found == nil {
			at++
			continue
		}
		list = append(list, Found{found.name, at, end})
		at = end
	}
	return list
}
