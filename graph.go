package tidemark

import (
	"fmt"
	"strings"
)

// Edge is one stage: it takes messages from one topic and puts messages on another.
type Edge struct {
	From, Stage, To string
}

// Graph is what is wired to what.
type Graph struct {
	Edges []Edge
	// Tables has, when the pipeline has a database, each table with the tables whose
	// download it waits for.
	Tables []GraphTable
}

// GraphTable is a table and its parents.
type GraphTable struct {
	Name    string
	Parents []string
}

func (g *Graph) add(from, stage, to string) {
	g.Edges = append(g.Edges, Edge{from, stage, to})
}

// Mermaid draws the graph as a Mermaid flowchart.
func (g Graph) Mermaid() string {
	var b strings.Builder
	b.WriteString("flowchart TD\n")
	topics := map[string]bool{}
	node := func(name string) string {
		if !topics[name] {
			topics[name] = true
			fmt.Fprintf(&b, "    %s([%s])\n", name, name)
		}
		return name
	}
	for i, e := range g.Edges {
		from, to := node(e.From), node(e.To)
		fmt.Fprintf(&b, "    s%d[%s]\n    %s --> s%d --> %s\n", i, e.Stage, from, i, to)
	}
	if len(g.Tables) == 0 {
		return b.String()
	}
	b.WriteString("    subgraph tables [download order]\n")
	id := map[string]int{}
	for i, t := range g.Tables {
		id[t.Name] = i
		fmt.Fprintf(&b, "        t%d[\"%s\"]\n", i, mermaidText(t.Name))
	}
	for _, t := range g.Tables {
		for _, p := range t.Parents {
			if n, ok := id[p]; ok {
				fmt.Fprintf(&b, "        t%d --> t%d\n", n, id[t.Name])
			}
		}
	}
	b.WriteString("    end\n")
	return b.String()
}

// mermaidText spells a table's name so that nothing in it is Mermaid's syntax.
func mermaidText(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune("\"#;<>[](){}|`\\&", r) || r < ' ' {
			fmt.Fprintf(&b, "#%d;", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
