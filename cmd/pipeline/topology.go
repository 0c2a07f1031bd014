package main

import (
	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

func (a *app) topology() *cobra.Command {
	return a.takes(&cobra.Command{
		Use:   "topology [--db FILE]",
		Short: "print what is wired to what, as a Mermaid graph",
		Long: `topology prints the stages of a cycle and the messages between them as a
Mermaid flowchart, for a README or mermaid.live. With a database it adds its
tables, each after those whose rows it refers to: the order of their download.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			s, err := a.settings(cmd)
			if err != nil {
				return err
			}
			if s.db.text == "" {
				a.out.printf("%s", tidemark.Topology().Mermaid())
				return nil
			}
			db, err := a.openDatabase(ctx, s.db)
			if err != nil {
				return err
			}
			defer db.Close()
			if err := db.attached(ctx); err != nil {
				return err
			}
			p, err := tidemark.New(ctx, db.DB, nobody{}, nil)
			if err != nil {
				return db.failed(err)
			}
			g, err := p.Topology(ctx)
			if err != nil {
				return db.failed(err)
			}
			a.out.printf("%s", g.Mermaid())
			return nil
		},
	}, "db")
}

// nobody is a remote that a graph needs and nobody asks.
type nobody struct{ tidemark.Remote }
