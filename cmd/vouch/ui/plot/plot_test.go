package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// wellFormed reads SVG as XML, and returns the elements it has of each name.
func wellFormed(t *testing.T, svg string) map[string]int {
	t.Helper()
	n := make(map[string]int)
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok {
			n[e.Name.Local]++
		}
	}
}

func TestABarForEachStepThatHasOne(t *testing.T) {
	t.Parallel()
	svg := string(Bars{ID: "p1", Title: "Calls over time", Desc: "12 in the last hour", Values: []uint64{0, 12, 6, 0}, Tips: []string{"10:00: 0", "10:01: 12", "10:02: 6", "10:03: 0"}}.SVG())
	want := `<svg class="bars" role="img" viewBox="0 0 40 100" preserveAspectRatio="none" aria-labelledby="p1-t" aria-describedby="p1-d">` +
		`<title id="p1-t">Calls over time</title><desc id="p1-d">12 in the last hour</desc>` +
		`<g><title>10:00: 0</title><rect class="step" x="0" y="0" width="10" height="100" fill-opacity="0"/></g>` +
		`<g><title>10:01: 12</title><rect class="step" x="10" y="0" width="10" height="100" fill-opacity="0"/><rect class="bar" x="11" y="0" width="8" height="100"/></g>` +
		`<g><title>10:02: 6</title><rect class="step" x="20" y="0" width="10" height="100" fill-opacity="0"/><rect class="bar" x="21" y="50" width="8" height="50"/></g>` +
		`<g><title>10:03: 0</title><rect class="step" x="30" y="0" width="10" height="100" fill-opacity="0"/></g></svg>`
	if svg != want {
		t.Errorf("got\n%s\nwant\n%s", svg, want)
	}
	wellFormed(t, svg)
}

func TestExtremesStayWithinTheDrawing(t *testing.T) {
	t.Parallel()
	for _, values := range [][]uint64{nil, {0}, {1}, {math.MaxUint64, 1, 0}} {
		svg := string(Bars{ID: "x", Values: values}.SVG())
		wellFormed(t, svg)
		for _, v := range values {
			if h := tall(v, max(few, math.MaxUint64)); h < 0 || h > height || v > 0 && h < least {
				t.Errorf("%d is %d high", v, h)
			}
		}
	}
	if h := tall(1, few); h != height/4 {
		t.Errorf("one of something is %d high", h)
	}
}

func FuzzTextStaysText(f *testing.F) {
	f.Add("a", `"><script>alert(1)</script>`, "]]>&<!--", uint64(3))
	f.Add("\x00\x1b[31m", "\u202e\xff", "</title></svg>", uint64(0))
	f.Fuzz(func(t *testing.T, id, title, tip string, n uint64) {
		svg := string(Bars{ID: id, Title: title, Desc: tip, Values: []uint64{n, 1}, Tips: []string{tip}}.SVG())
		got := wellFormed(t, svg)
		if got["svg"] != 1 || got["title"] > 3 || got["desc"] != 1 || got["script"] > 0 {
			t.Errorf("%v in %s", got, svg)
		}
		for name := range got {
			if !strings.Contains("svg title desc g rect", name) {
				t.Errorf("%s in %s", name, svg)
			}
		}
	})
}
