INSERT INTO notebooks (id, name, colour) VALUES (1, 'Travel', 'green'), (2, 'Home', 'orange'), (3, 'Work', 'blue');
INSERT INTO notes (id, notebook, title, body, pinned, rating) VALUES
  (1, 1, 'Lisbon', 'Tram 28, early. Custard tarts in Belém 🥧', 1, 4.5),
  (2, 1, 'Night trains', 'Vienna – Rome, two in a cabin', 0, 3.9),
  (3, 1, 'Norway by ferry', 'Bergen to Kirkenes, six days', 0, NULL),
  (4, 2, 'Bread', '500 g flour, 350 g water, 10 g salt', 1, 5),
  (5, 2, 'Paint for the kitchen', 'The second white from the left', 0, NULL),
  (6, 2, 'Old wifi password', 'the-cat-on-the-mat', 0, 0.1),
  (7, 2, 'Books to give back', 'Two from Ana, one from the library', 0, NULL),
  (8, 3, 'Minutes of Monday', 'Nobody was there', 0, 1.5),
  (9, 3, 'Release checklist', 'Tests, notes, tag, tea', 1, 4),
  (10, 3, 'Questions for Priya', 'Budget? Budget?', 0, NULL);
INSERT INTO comments (id, note, answers, text) VALUES
  (1, 1, NULL, 'Go up to Graça for the view'),
  (2, 1, 1, 'We did, it rained'),
  (3, 1, 2, 'It never rains there'),
  (4, 2, NULL, 'Book ninety days ahead'),
  (5, 4, NULL, 'Less salt'),
  (6, 4, 5, 'No'),
  (7, 6, NULL, 'Still used by the neighbours'),
  (8, 9, NULL, 'The tea comes first'),
  (9, 10, NULL, 'She is away until Thursday');
INSERT INTO tags (id, name) VALUES (1, 'summer'), (2, 'food'), (3, 'someday'), (4, 'urgent');
INSERT INTO note_tags (note, tag) VALUES (1, 1), (1, 2), (2, 3), (3, 1), (3, 3), (4, 2), (6, 4), (9, 4), (10, 4);
