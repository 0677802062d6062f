// Package plot draws numbers over time as SVG, for a page without scripts.
//
// A plot stretches to the width of what it is in. It has no text to be distorted by that: labels
// belong beside it. It is black where the page does not style it.
package plot

import (
	"encoding/xml"
	"fmt"
	"html/template"
	"slices"
	"strings"
)

// Bars are one number over time, a bar for each step.
type Bars struct {
	ID     string // unique on the page
	Title  string // what a screen reader calls it
	Desc   string // what it shows, in a sentence
	Values []uint64
	Tips   []string // shown with the pointer on a step; may be missing
}

// In units of the drawing.
const (
	stepWidth = 10
	barWidth  = 8
	height    = 100
	least     = 3 // of a bar that is not 0
	few       = 4 // as many reach the top at least: one of something is not much of it
)

// SVG draws them.
func (b Bars) SVG() template.HTML {
	var s strings.Builder
	fmt.Fprintf(&s, `<svg class="bars" role="img" viewBox="0 0 %d %d" preserveAspectRatio="none" aria-labelledby="%s-t" aria-describedby="%[3]s-d">`,
		max(1, len(b.Values))*stepWidth, height, text(b.ID))
	fmt.Fprintf(&s, `<title id="%s-t">%s</title><desc id="%[1]s-d">%[3]s</desc>`, text(b.ID), text(b.Title), text(b.Desc))
	most := uint64(few)
	if len(b.Values) > 0 {
		most = max(most, slices.Max(b.Values))
	}
	for i, v := range b.Values {
		x := i * stepWidth
		tip := ""
		if i < len(b.Tips) {
			tip = "<title>" + text(b.Tips[i]) + "</title>"
		}
		if tip != "" || v > 0 {
			fmt.Fprintf(&s, `<g>%s<rect class="step" x="%d" y="0" width="%d" height="%d" fill-opacity="0"/>`, tip, x, stepWidth, height)
			if h := tall(v, most); h > 0 {
				fmt.Fprintf(&s, `<rect class="bar" x="%d" y="%d" width="%d" height="%d"/>`, x+(stepWidth-barWidth)/2, height-h, barWidth, h)
			}
			s.WriteString(`</g>`)
		}
	}
	s.WriteString(`</svg>`)
	return template.HTML(s.String())
}

// tall is how high a bar is.
func tall(v, most uint64) int {
	if v == 0 {
		return 0
	}
	return max(least, int(float64(v)/float64(most)*height+0.5))
}

// text is a text in XML, and in HTML.
func text(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // a builder takes every write
	return b.String()
}
