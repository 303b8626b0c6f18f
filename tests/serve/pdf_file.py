"""A PDF made by hand: pages of lines in Helvetica."""


def pdf_file(pages: list[list[str]], title: str = "A title") -> bytes:
    bodies = {1: b"<< /Type /Catalog /Pages 2 0 R >>", 3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"}
    kids = []
    for i, lines in enumerate(pages):
        number = 4 + 2 * i
        shown = b" ".join(b"(%s) Tj T*" % line.encode("latin-1").replace(b"\\", b"\\\\").replace(b"(", b"\\(") for line in lines)
        stream = b"BT /F1 12 Tf 72 720 Td 14 TL %s ET" % shown
        bodies[number] = (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
            % (number + 1)
        )
        bodies[number + 1] = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream)
        kids.append(b"%d 0 R" % number)
    bodies[2] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    last = 4 + 2 * len(pages)
    bodies[last] = b"<< /Title (%s) >>" % title.encode()
    data, places = b"%PDF-1.4\n", []
    for number in range(1, last + 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, bodies[number])
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    tail = b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (last + 1, last, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n" % (last + 1) + table + tail
